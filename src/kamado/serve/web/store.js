// Conversations, kept in this browser. IndexedDB, and plain memory where a browser gives none (private windows).

const DATABASE = "kamado";
const TABLE = "conversations";

function wait(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** A name that no other object has. (crypto.randomUUID is missing on the plain-HTTP addresses of a LAN.) */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

export class Store {
  static async open() {
    const store = new Store();
    store.memory = new Map();
    store.database = null;
    try {
      const opening = indexedDB.open(DATABASE, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      store.database = await wait(opening);
    } catch (error) {
      console.warn("conversations are kept until this tab is closed:", error);
    }
    store.channel = typeof BroadcastChannel === "function" ? new BroadcastChannel(DATABASE) : null;
    return store;
  }

  /** Whether conversations outlive this tab. */
  get isKept() {
    return this.database !== null;
  }

  #table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  /** All conversations, the latest first. */
  async list() {
    const all = this.database ? await wait(this.#table("readonly").getAll()) : [...this.memory.values()];
    return all.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return this.database ? wait(this.#table("readonly").get(id)) : structuredClone(this.memory.get(id));
  }

  /** Writes a copy and tells other tabs. Rejects when the browser's space is used up. */
  async put(conversation) {
    if (this.database) await wait(this.#table("readwrite").put(conversation));
    else this.memory.set(conversation.id, structuredClone(conversation));
    this.channel?.postMessage(conversation.id);
  }

  async remove(id) {
    if (this.database) await wait(this.#table("readwrite").delete(id));
    else this.memory.delete(id);
    this.channel?.postMessage(id);
  }

  /** Calls `changed(id)` when another tab wrote or removed a conversation. */
  onChange(changed) {
    if (this.channel) this.channel.onmessage = (event) => changed(event.data);
  }
}
