/** Pictures that go with a message, as small as the models read them. */
export const MOST_PICTURES = 16; // of a message

const LARGEST_FILE = 64 << 20; // bytes
const MOST_PIXELS = 4_816_896; // models reduce what has more
const MOST_BYTES = 2 << 20; // of a picture that is kept: a conversation is sent whole with each question
const AS_THEY_ARE = ["image/png", "image/jpeg"];
const ADDRESS = /^data:image\/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$/;

/** Whether a file is a picture; SVG is text. */
export const isPicture = (file) => file.type.startsWith("image/") && file.type !== "image/svg+xml";

/** {name, url, width, height} of a file, the address with the picture in it. Raises an Error for what is none. */
export async function pictureOf(file) {
  if (file.size > LARGEST_FILE) throw new Error("large");
  const image = await createImageBitmap(file);
  try {
    const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (image.width * image.height)));
    const width = Math.max(1, Math.floor(image.width * scale));
    const height = Math.max(1, Math.floor(image.height * scale));
    const kept = scale === 1 && file.size <= MOST_BYTES && AS_THEY_ARE.includes(file.type);
    return { name: file.name, url: await addressOf(kept ? file : await drawn(image, width, height, file.type)), width, height };
  } finally {
    image.close();
  }
}

/** A picture of a file that is imported, with only what the page knows; undefined for what is none. */
export function pictureFrom({ name, url, width, height }) {
  const side = (n) => Number.isInteger(n) && n > 0 && n <= MOST_PIXELS;
  if (typeof url !== "string" || url.length > 1.5 * MOST_BYTES || !ADDRESS.test(url) || !side(width) || !side(height)) return undefined;
  return { name: typeof name === "string" ? name.slice(0, 200) : "", url, width, height };
}

async function drawn(image, width, height, type) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // what is transparent, the models see white
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  const saved = (kind, quality) => new Promise((resolve) => canvas.toBlob(resolve, kind, quality));
  const exact = type === "image/jpeg" ? null : await saved("image/png");
  if (exact && exact.size <= MOST_BYTES) return exact;
  const photo = await saved("image/jpeg", 0.92);
  if (!photo || photo.size > MOST_BYTES) throw new Error("large");
  return photo;
}

function addressOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
