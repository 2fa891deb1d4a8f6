// The API key: asked for when the server wants one, kept for this tab only.

import { byId } from "./dom.js";

const STORED = "megainfer.key";
let asking = null;

export const storedKey = () => sessionStorage.getItem(STORED);

/** Asks the user once, however many callers wait; whether there is a new key to try. */
export function askForKey(refused) {
  if (asking === null) {
    asking = ask(refused).finally(() => (asking = null));
  }
  return asking;
}

function ask(refused) {
  const dialog = byId("key-dialog");
  byId("key-reason").textContent = refused ? "The key that was sent isn’t one of this server’s." : "";
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, byId("key").value.trim());
      dialog.close("given");
    };
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue === "given");
    dialog.returnValue = "";
  });
}
