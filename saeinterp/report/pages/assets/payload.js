/* Data and libraries lie in the page as gzip + base64; nothing is ever requested from anywhere. */

const byId = (id) => document.getElementById(id);

async function gunzip(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) bytes[place] = text.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function inflate(id) {
  const holder = byId(id);
  if (!holder) return null;
  const base64 = holder.textContent.trim();
  holder.remove();
  return gunzip(base64);
}

/* A library runs as an inline script, which the page's policy admits by its hash alone. */
async function library(id) {
  const source = await inflate(id);
  if (source === null) return false;
  const script = document.createElement("script");
  script.textContent = source;
  document.head.append(script);
  script.remove();
  return true;
}

/* What scrolls sideways can be reached by keyboard; where there is nothing to scroll, no stop is added. */
function reachable(root) {
  for (const part of root.querySelectorAll(".scroll")) {
    if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

/* element("td", {class: "r"}, "text", child): text goes in as text, never as markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "vars") for (const [key, item] of Object.entries(value)) made.style.setProperty(key, item);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
