// The page's frame: which view is open, the key, and the models that it may use.

import { call, complaint, key, setKey } from "./api.js";
import * as look from "./look.js";
import * as search from "./search.js";
import * as trial from "./try.js";

const VIEWS = { try: trial, search, look };
const RETRY_MS = 3000;
const $ = (id) => document.getElementById(id);
const keyForm = $("key-form");
let retry;

function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "try";
  for (const view of Object.keys(VIEWS)) $(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${$(`view-${name}`).querySelector("h1").textContent} · embedding-service`;
  look.watch(name === "look");
}

/** Read the models; while none is loaded, again and again. */
async function loadModels() {
  clearTimeout(retry);
  try {
    const { value } = await call("v1/models");
    const models = value.data;
    trial.offer(models);
    search.offer(models);
    for (const button of document.querySelectorAll(".primary")) button.disabled = !models.length;
    if (models.length) {
      $("notice").replaceChildren();
      return;
    }
    $("notice").textContent = "The models are still loading …";
  } catch (error) {
    $("notice").replaceChildren(complaint(error));
    if (error.status === 401 || error.status === 403) return; // a key helps, and waiting does not
  }
  retry = setTimeout(loadModels, RETRY_MS);
}

document.addEventListener("key-wanted", (event) => {
  $("notice").replaceChildren(complaint(event.detail));
  if (!keyForm.hidden) return;
  keyForm.hidden = false;
  $("key").focus();
});
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  loadModels();
  look.refresh();
});
document.addEventListener("keydown", (event) => {
  const form = event.target.closest?.("form");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form?.requestSubmit();
});
// Links within the page move the focus as well, for those who cannot see what has changed.
window.addEventListener("hashchange", () => {
  show();
  if (location.hash.slice(1) in VIEWS) $("main").focus({ preventScroll: true });
});

$("docs")?.setAttribute("href", new URL("../docs", import.meta.url));
if (key()) {
  keyForm.hidden = false;
  $("key").value = key();
}
show();
loadModels();
