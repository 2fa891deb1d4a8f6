// On narrow screens one of the two sides is shown; on wide ones both are.

import { byId } from "./dom.js";

export function setUpTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => show(tabs, tab));
    tab.addEventListener("keydown", (event) => onKey(event, tabs, tab));
  }
  show(tabs, byId(location.hash === "#live" ? "tab-live" : "tab-chat"));
}

/** The one that is chosen is the one that Tab reaches; arrows lead to the others. */
function show(tabs, chosen) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
  }
  document.body.dataset.tab = chosen.getAttribute("aria-controls");
  document.dispatchEvent(new Event("tabchange"));
}

function onKey(event, tabs, tab) {
  const at = tabs.indexOf(tab);
  const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const chosen = tabs.at(next % tabs.length);
  show(tabs, chosen);
  chosen.focus();
}
