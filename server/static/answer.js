// One answer of the model while it comes, and what may be done with it afterwards.

import { copyButton, element } from "./dom.js";
import { count, seconds, short } from "./format.js";
import { Markdown } from "./markdown.js";

const ENDINGS = { length: "cut off at the token limit", tool_calls: "asked for a tool" };
const BROKE_OFF = "broke off"; // the connection ended, or the page was left

export class Answer {
  constructor(onRegenerate) {
    this.text = "";
    this.reasoning = "";
    this.tokens = 0;
    this.started = performance.now();
    this.onRegenerate = onRegenerate;
    this.build();
  }

  build() {
    this.thoughts = element("pre");
    this.summary = element("summary", { textContent: "Thinking" });
    this.folded = element("details", { className: "reasoning", hidden: true }, this.summary, this.thoughts);
    this.body = element("div", { className: "markdown" });
    this.markdown = new Markdown(this.body);
    this.problem = element("p", { className: "problem", hidden: true });
    this.figures = element("span", { className: "figures" });
    this.foot = element("div", { className: "foot" }, this.figures);
    this.root = element(
      "article",
      { className: "message assistant busy", ariaLabel: "The model" },
      ...[this.folded, this.body, this.problem, this.foot],
    );
  }

  /** Takes in one event of the stream. */
  take(event) {
    if (event.usage) this.tokens = event.usage.completion_tokens;
    const [choice] = event.choices ?? [];
    if (choice === undefined) return;
    this.finish = choice.finish_reason ?? this.finish;
    const { content, reasoning, reasoning_content: also } = choice.delta;
    const thought = reasoning ?? also;
    if (!content && !thought) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.chunks = (this.chunks ?? 0) + 1;
    this.text += content ?? "";
    this.reasoning += thought ?? "";
    this.draw();
  }

  /** Once a frame, however fast the tokens come. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.drawNow();
    });
  }

  drawNow() {
    this.folded.hidden = !this.reasoning;
    this.thoughts.textContent = this.reasoning;
    if (this.text) this.summary.textContent = "Thoughts";
    this.markdown.show(this.text);
    this.root.dispatchEvent(new Event("grown", { bubbles: true }));
  }

  fail(message) {
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  /** No more will come. stopped: by the user. */
  end(stopped) {
    this.root.classList.remove("busy");
    this.figures.textContent = this.told(stopped).join(" · ");
    const again = element("button", { type: "button", className: "quiet again", textContent: "Regenerate" });
    again.addEventListener("click", this.onRegenerate);
    this.foot.append(element("span", { className: "buttons" }, copyButton(() => this.text), again));
    this.drawNow();
  }

  /** What is kept of it. */
  record() {
    const { text, reasoning, figures, problem } = this;
    const failure = problem.hidden ? "" : problem.textContent;
    return { reasoning, figures: figures.textContent, failure, content: text };
  }

  /** As it was when it was kept. */
  restore({ content = "", reasoning = "", figures = "", failure = "" }) {
    [this.text, this.reasoning] = [content, reasoning];
    if (failure) this.fail(failure);
    this.end(false);
    this.figures.textContent = figures || BROKE_OFF;
    return this;
  }

  /** For those who hear the page. */
  spoken() {
    return this.problem.hidden ? this.body.innerText : this.problem.textContent;
  }

  told(stopped) {
    const tokens = this.tokens || this.chunks || 0; // without usage, when it was stopped
    const broke = !stopped && !this.finish && this.problem.hidden;
    const parts = stopped ? ["stopped"] : this.finish in ENDINGS ? [ENDINGS[this.finish]] : broke ? [BROKE_OFF] : [];
    if (!this.first) return parts;
    parts.push(`first token after ${seconds((this.first - this.started) / 1000)}`, count(tokens, "token"));
    const decoding = (this.last - this.first) / 1000;
    if (tokens > 1 && decoding > 0) parts.push(`${short((tokens - 1) / decoding)} tokens/s`);
    return parts;
  }
}
