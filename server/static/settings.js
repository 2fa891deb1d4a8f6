// The sampling controls. What is left empty isn't sent, so the model's own default holds.

import { byId } from "./dom.js";

const STORED = "megainfer.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const SHORT = { temperature: "temp.", top_p: "top p", top_k: "top k", max_tokens: "max", seed: "seed" };

export class Settings {
  constructor() {
    this.panel = byId("settings");
    this.fields = Object.fromEntries(
      ["system", ...NUMBERS].map((name) => [name, this.panel.querySelector(`[name=${name}]`)]),
    );
    this.restore();
    this.panel.addEventListener("input", () => this.keep());
    byId("reset").addEventListener("click", () => this.reset());
    byId("open-settings").addEventListener("click", () => this.toggle());
  }

  get system() {
    return this.fields.system.value.trim();
  }

  /** The fields of a request that the user has set. */
  sampling() {
    const given = NUMBERS.filter((name) => this.fields[name].value !== "");
    return Object.fromEntries(given.map((name) => [name, Number(this.fields[name].value)]));
  }

  /** Why they can't be used, in the browser's words; empty when they can. */
  problem() {
    const wrong = NUMBERS.map((name) => this.fields[name]).find((field) => !field.validity.valid);
    return wrong ? `${wrong.name}: ${wrong.validationMessage}` : "";
  }

  toggle() {
    this.panel.hidden = !this.panel.hidden;
    byId("open-settings").ariaExpanded = String(!this.panel.hidden);
  }

  /** From within, handing the focus back to what opened them. */
  close() {
    if (this.panel.hidden || !this.panel.contains(document.activeElement)) return;
    this.toggle();
    byId("open-settings").focus();
  }

  reset() {
    for (const field of Object.values(this.fields)) field.value = "";
    this.keep();
  }

  keep() {
    const values = Object.entries(this.fields).map(([name, field]) => [name, field.value]);
    sessionStorage.setItem(STORED, JSON.stringify(Object.fromEntries(values)));
    this.summarize();
  }

  restore() {
    const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "{}");
    for (const [name, field] of Object.entries(this.fields)) field.value = stored[name] ?? "";
    this.summarize();
  }

  summarize() {
    const parts = Object.entries(this.sampling()).map(([name, value]) => `${SHORT[name]} ${value}`);
    if (this.system) parts.unshift("system prompt");
    byId("settings-summary").textContent = parts.join(" · ");
  }
}
