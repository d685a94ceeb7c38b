// The page's frame: which view is open, the key, and the models that it may use.
import { $, call, complaint, key } from "./api.js";
import * as look from "./look.js";
import * as search from "./search.js";
import * as trial from "./try.js";

const VIEWS = ["try", "search", "look"];
const RETRY_MS = 3000;
let retry;

function show() {
  const name = VIEWS.find((view) => location.hash === `#${view}`) ?? "try";
  for (const view of VIEWS) $(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("aria-current", link.hash === `#${name}` ? "page" : "false");
  }
  document.title = `${$(`${name}-title`).textContent} · embedding-service`;
  look.watch(name === "look");
  loadModels();
}

/** Read the models, of which one more may be ready; while none is loaded, again and again. */
async function loadModels() {
  clearTimeout(retry);
  try {
    const models = (await call("v1/models")).value.data;
    trial.offer(models);
    search.offer(models);
    for (const button of document.querySelectorAll(".primary")) button.disabled = !models.length;
    $("notice").textContent = models.length ? "" : "The models are still loading; this page waits for them.";
    if (models.length) return;
  } catch (error) {
    $("notice").replaceChildren(complaint(error));
    if (error.status === 401 || error.status === 403) return; // a key helps, and waiting does not
  }
  clearTimeout(retry);
  retry = setTimeout(loadModels, RETRY_MS);
}

document.addEventListener("key-wanted", ({ detail: error }) => {
  $("notice").replaceChildren(complaint(error));
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
});
document.addEventListener("focusin", ({ target }) => target.matches("[id$=-model], [id$=-reranker]") && loadModels());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key($("key").value.trim());
  loadModels();
  look.watch();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.closest?.("form")?.requestSubmit();
});
// Links within the page move the focus as well, for those who cannot see what has changed.
window.addEventListener("hashchange", () => {
  show();
  if (location.hash !== "#main") $("main").focus({ preventScroll: true });
});

$("docs")?.setAttribute("href", new URL("../docs", import.meta.url));
$("key").value = key();
$("key-form").hidden = !key();
show();
