// Before the page is drawn: if a part of it cannot be loaded, says so and offers to reload. Works without any other part.

const isDrawn = () => document.querySelector("#main") !== null;

function failed() {
  if (isDrawn()) return;
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
