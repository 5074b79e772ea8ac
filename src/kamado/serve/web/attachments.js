// Text files of a message. Anything that is no text is refused by name, and so is what would fill any context.

export const MAX_FILE_BYTES = 1 << 20;
export const MAX_FILES = 16;

/** Reads `list`; returns {read: [{name, text}], refused: [sentence]}. `have` are the files attached already. */
export async function readFiles(list, have) {
  const read = [];
  const refused = [];
  for (const file of list) {
    if (have.length + read.length >= MAX_FILES) {
      refused.push(`${file.name}: a message takes ${MAX_FILES} files.`);
    } else if (file.size > MAX_FILE_BYTES) {
      refused.push(`${file.name}: larger than 1 MiB.`);
    } else {
      const text = decode(await file.arrayBuffer());
      if (text === null) refused.push(`${file.name}: no text file (it must be UTF-8).`);
      else read.push({ name: file.name, text });
    }
  }
  return { read, refused };
}

function decode(buffer) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(buffer);
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
