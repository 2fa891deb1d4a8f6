// The conversation: what was said, and the one answer that may be on its way.

import { Answer } from "./answer.js";
import { call, events } from "./api.js";
import { byId, element } from "./dom.js";
import { Settings } from "./settings.js";
import { keepTalk, storedTalk } from "./talk.js";

const OPENINGS = ["Why is the sky blue?", "Write a haiku about two nodes.", "List three uses of a paper clip."];
const NEAR_END = 80; // pixels from the end within which the view follows the text

/** To those who hear the page. */
const announce = (text) => (byId("said").textContent = text);

export class Chat {
  constructor({ onEnd }) {
    this.onEnd = onEnd;
    this.settings = new Settings();
    this.turns = [];
    this.view = byId("conversation");
    this.field = byId("prompt");
    this.following = true;
    this.listen();
    this.showOpening();
    this.restore();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener("input", () => this.fit());
    this.field.addEventListener("keydown", (event) => this.onKey(event));
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    document.addEventListener("keydown", (event) => this.onEscape(event));
    for (const kind of ["beforeunload", "pagehide"]) addEventListener(kind, () => this.leave());
    this.view.addEventListener("grown", () => this.follow());
    this.view.addEventListener("scroll", () => (this.following = this.isNearEnd()));
  }

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  /** Stops an answer; with none on its way, closes the settings that are being changed. */
  onEscape(event) {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (this.aborting) this.stop();
    else this.settings.close();
  }

  submit() {
    const text = this.field.value.trim();
    if (!text || this.aborting) return;
    this.field.value = "";
    this.fit();
    this.ask(text);
  }

  ask(text) {
    this.left = false;
    if (!this.turns.length) this.view.replaceChildren();
    this.showQuestion(text);
    return this.answer();
  }

  showQuestion(text) {
    const asked = element("article", { className: "message user", textContent: text });
    asked.ariaLabel = "You";
    this.view.append(asked);
    this.turns.push({ role: "user", content: text, root: asked });
  }

  showAnswer() {
    const answer = new Answer(() => this.regenerate(answer));
    this.view.append(answer.root);
    return answer;
  }

  /** The talk of before the page was loaded again. */
  restore() {
    const turns = storedTalk();
    if (!turns.length) return;
    this.view.replaceChildren();
    for (const turn of turns) {
      if (turn.role === "user") this.showQuestion(turn.content);
      else this.turns.push(this.asTurn(this.showAnswer().restore(turn)));
    }
    byId("clear").hidden = false;
    this.follow(true);
  }

  asTurn(answer) {
    return { role: "assistant", content: answer.text, root: answer.root, answer };
  }

  /** What happens to an answer from here on is the browser's doing. */
  leave() {
    this.keep();
    this.left = true;
  }

  /** With as much of an answer as has come. */
  keep() {
    if (this.left) return;
    keepTalk(this.aborting ? [...this.turns, this.asTurn(this.coming)] : this.turns);
  }

  async answer() {
    const answer = this.showAnswer();
    this.coming = answer;
    this.busy(new AbortController());
    announce("The model answers.");
    this.follow(true);
    const { signal } = this.aborting;
    try {
      await this.receive(answer, signal);
    } catch (error) {
      if (!signal.aborted) answer.fail(error.message);
    }
    this.turns.push(this.asTurn(answer));
    answer.end(signal.aborted);
    this.busy(null);
    this.keep();
    announce(`${signal.aborted ? "Stopped. " : ""}${answer.spoken()}`);
    if (answer.text) this.onEnd();
  }

  async receive(answer, signal) {
    const problem = this.settings.problem();
    if (problem) throw new Error(problem);
    const body = this.request(); // without this answer
    const response = await call("v1/chat/completions", { body, signal });
    for await (const event of events(response)) answer.take(event);
  }

  request() {
    // A question that got no answer isn't repeated with the next one.
    const spoken = this.turns.filter((turn, at) => turn.content && this.turns[at + 1]?.content !== "");
    const messages = spoken.map(({ role, content }) => ({ role, content }));
    if (this.settings.system) messages.unshift({ role: "system", content: this.settings.system });
    return { messages, stream: true, stream_options: { include_usage: true }, ...this.settings.sampling() };
  }

  /** The same question again: this answer and all after it go. */
  regenerate(answer) {
    if (this.aborting) return;
    const from = this.turns.findIndex((turn) => turn.root === answer.root);
    for (const turn of this.turns.splice(from)) turn.root.remove();
    byId("stop").hidden = false;
    byId("stop").focus(); // the button that was pressed is gone
    this.answer();
  }

  stop() {
    this.aborting?.abort();
  }

  clear() {
    if (this.aborting) return;
    this.turns = [];
    this.showOpening();
    this.keep();
    if (document.activeElement === byId("clear")) this.field.focus();
    byId("clear").hidden = true;
  }

  showOpening() {
    this.view.replaceChildren(this.opening());
  }

  opening() {
    const buttons = OPENINGS.map((text) => {
      const button = element("button", { type: "button", textContent: text });
      button.addEventListener("click", () => {
        this.field.focus();
        this.ask(text);
      });
      return button;
    });
    const lead = element("p", { textContent: "Ask the model something, and watch it being answered." });
    return element("div", { className: "opening" }, lead, ...buttons);
  }

  /** A button that has the keyboard's focus hands it on before it vanishes. */
  busy(controller) {
    const [send, stop] = [byId("send"), byId("stop")];
    const focused = document.activeElement;
    this.aborting = controller;
    send.hidden = controller !== null;
    stop.hidden = controller === null;
    if (focused === stop && controller === null) this.field.focus();
    if ((focused === send || !focused?.isConnected) && controller !== null) stop.focus();
    byId("clear").hidden = controller !== null;
    this.view.classList.toggle("busy", controller !== null);
  }

  follow(always = false) {
    if (always || this.following) this.view.scrollTop = this.view.scrollHeight;
  }

  isNearEnd() {
    return this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < NEAR_END;
  }

  /** As high as its text, where the browser doesn't see to that by itself. */
  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
