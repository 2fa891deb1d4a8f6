// On narrow screens one of the two sides is shown; on wide ones both are.

import { byId } from "./dom.js";

export function setUpTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => show(tabs, tab));
  }
  if (location.hash === "#live") show(tabs, byId("tab-live"));
}

function show(tabs, chosen) {
  for (const tab of tabs) tab.ariaSelected = String(tab === chosen);
  document.body.dataset.tab = chosen.getAttribute("aria-controls");
  document.dispatchEvent(new Event("tabchange"));
}
