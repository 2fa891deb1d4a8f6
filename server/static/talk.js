// What was said, kept for this tab until it is closed: a reload doesn't forget it.

const STORED = "megainfer.talk";

/** Turns as plain values; what doesn't fit isn't kept. */
export function keepTalk(turns) {
  const plain = turns.map(({ role, content, answer }) => ({ role, content, ...answer?.record() }));
  try {
    sessionStorage.setItem(STORED, JSON.stringify(plain));
  } catch {
    sessionStorage.removeItem(STORED);
  }
}

export function storedTalk() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
    return Array.isArray(turns) ? turns : [];
  } catch {
    return [];
  }
}
