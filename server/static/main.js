import { Chat } from "./chat.js";
import { Live } from "./live.js";
import { setUpTabs } from "./tabs.js";

setUpTabs();
const live = new Live();
new Chat({ onEnd: () => live.refresh() });
live.start();
