// Building elements. Text only ever becomes text: nothing here parses HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`data` goes to its dataset) and children, nodes or strings. */
export function element(tag, { data = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

/** One of several buttons is pressed; tells which by its data value. */
export function choice(group, name, onChange) {
  const buttons = [...group.querySelectorAll(`[data-${name}]`)];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.ariaPressed = String(other === button);
      onChange(button.dataset[name]);
    });
  }
}

/** Copies, and says so on the button for a moment. */
export function copyButton(textOf) {
  const button = element("button", { type: "button", className: "quiet", textContent: "Copy" });
  button.addEventListener("click", async () => {
    button.textContent = (await copied(textOf())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1200);
  });
  return button;
}

async function copied(text) {
  if (!navigator.clipboard) return copiedBySelection(text); // plain http from elsewhere
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

function copiedBySelection(text) {
  const area = element("textarea", { value: text, className: "offscreen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
