// What the browser keeps: conversations and settings.

const CONVERSATIONS = "inference.conversations";
const SETTINGS = "inference.settings";
const MOST = 200;

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** All conversations, newest first. */
export const conversations = read(CONVERSATIONS, []);

/** The settings of all conversations. */
export const settings = read(SETTINGS, {});

/** Keeps the conversations; where there is no room, without the oldest. False if none could be kept. */
export function saveConversations() {
  conversations.splice(MOST);
  for (let kept = conversations.length; kept > 0; kept -= 1) {
    try {
      localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations.slice(0, kept)));
      return true;
    } catch {
      // One less.
    }
  }
  if (conversations.length === 0) localStorage.removeItem(CONVERSATIONS);
  return conversations.length === 0;
}

export function saveSettings() {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // They hold until the page is closed.
  }
}
