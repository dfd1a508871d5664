// Before the page is drawn: if a part of it cannot be loaded, reloads once, then says so and offers to reload. Works without
// any other part.

const isDrawn = () => document.querySelector("#main") !== null;
const isReload = () => performance.getEntriesByType("navigation")[0]?.type === "reload";

function failed() {
  if (isDrawn()) return;
  // Browsers drop what they are loading when the machine's network changes, as when a VPN or a container starts.
  if (!isReload()) return location.reload();
  const app = document.querySelector("#app");
  const text = document.createElement("p");
  text.textContent = "The page could not be loaded. Is the service running? · تعذّر تحميل الصفحة. هل الخدمة تعمل؟";
  const again = document.createElement("button");
  again.textContent = "Reload · أعد التحميل";
  again.addEventListener("click", () => location.reload());
  app.replaceChildren(text, again);
}

// Errors of elements do not bubble, but can be captured.
addEventListener("error", ({ target }) => (target === window || target instanceof HTMLScriptElement) && failed(), true);
addEventListener("unhandledrejection", failed);
