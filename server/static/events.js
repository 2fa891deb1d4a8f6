// What happened to nodes lately, the latest first.

import { byId, element } from "./dom.js";

const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class Events {
  constructor() {
    this.list = byId("events-list");
    this.shown = "";
  }

  show({ events }) {
    const key = JSON.stringify(events);
    if (key === this.shown) return; // or those who hear the page would hear it each second
    this.shown = key;
    this.list.replaceChildren(...events.map(row).reverse());
    byId("events").hidden = !events.length;
  }
}

function row([at, text]) {
  const when = new Date(at * 1000);
  const time = element("time", { dateTime: when.toISOString(), title: when.toLocaleString() }, TIME.format(when));
  return element("li", {}, time, ` ${text}`);
}
