// The shell: who is signed in, which page is shown, language and theme.

import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { get, remove } from "./api.js";
import { Probes } from "./charts.js";
import { LANGUAGES, current, preferred, t, use } from "./language.js";
import { loadMethods } from "./methods.js";
import { Compare } from "./pages/compare.js";
import { Dataset, Datasets } from "./pages/datasets.js";
import { Job } from "./pages/job.js";
import { Jobs } from "./pages/jobs.js";
import { NewJob } from "./pages/new_job.js";
import { Overlay } from "./pages/overlay.js";
import { SignIn } from "./pages/sign_in.js";
import { Busy, isId, Missing } from "./parts.js";
import { User } from "./text.js";
import { ErrorBox } from "./wording.js";

const ROOMS = ["jobs", "new", "datasets", "curves"];
const THEMES = ["auto", "light", "dark"];

/** The place in the address after `#`: the parts of its path and its query. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

/** The page of a place: its title and what it shows. */
function page({ parts: [room = "jobs", id, part], query }) {
  const kind = room === "datasets" ? "dataset" : "job";
  const ids = room === "new" ? [query.get("from")] : [room === "curves" ? id?.split(",") : id].flat();
  if (ROOMS.includes(room) && !ids.filter(Boolean).every(isId)) return [t(`${kind}.title`), html`<${Missing} kind=${kind} />`];
  if (room === "jobs" && id && part === "compare") return [t("compare.title"), html`<${Compare} key=${id} id=${id} />`];
  if (room === "jobs" && id)
    return [t("job.title"), html`<${Job} key=${id} id=${id} part=${part ?? "curves"} query=${query} />`];
  if (room === "jobs") return [t("jobs.title"), html`<${Jobs} query=${query} />`];
  if (room === "new") return [t("new.title"), html`<${NewJob} key=${query.get("from")} from=${query.get("from")} />`];
  if (room === "datasets" && id) return [t("dataset.title"), html`<${Dataset} key=${id} id=${id} query=${query} />`];
  if (room === "datasets") return [t("datasets.title"), html`<${Datasets} />`];
  if (room === "curves" && id) return [t("overlay.title"), html`<${Overlay} key=${id} ids=${id.split(",")} />`];
  return [t("lost.title"), html`<p>${t("lost.text")} <a href="#/jobs">${t("jobs.title")}</a></p>`];
}

function App() {
  const [where, setWhere] = useState(place);
  const [session, setSession] = useState({ is: "unknown" });
  const [, redraw] = useState(0);
  const heading = useRef(null);

  async function ask() {
    try {
      const [found] = await Promise.all([get("/v1/session"), loadMethods()]);
      setSession({ is: "in", ...found });
    } catch (error) {
      setSession(error.status === 401 ? { is: "out" } : { is: "failed", error });
    }
  }
  useEffect(() => {
    ask();
    const onPlace = () => {
      setWhere(place());
      scrollTo(0, 0);
      heading.current?.focus();
    };
    const onOut = () => setSession({ is: "out" });
    addEventListener("hashchange", onPlace);
    addEventListener("signed-out", onOut);
    return () => {
      removeEventListener("hashchange", onPlace);
      removeEventListener("signed-out", onOut);
    };
  }, []);

  async function speak(code) {
    localStorage.setItem("language", code);
    await use(code);
    redraw((count) => count + 1);
  }
  const isIn = session.is === "in";
  const [title, content] = isIn ? page(where) : [t("sign_in.title"), outside(session, ask)];
  document.title = `${title} · ${t("brand")}`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), heading.current.focus())}>${t("skip")}</a>
    <header class="top">
      <a class="brand" href="#/jobs"><span lang="ar" translate=${false}>تفضيل</span> <span lang="en" translate=${false}>Tafdil</span></a>
      ${isIn && html`<${Navigation} room=${where.parts[0] ?? "jobs"} />`}
      <div class="settings">
        <${Theme} />
        ${Object.entries(LANGUAGES)
          .filter(([code]) => code !== current())
          .map(
            ([code, name]) =>
              html`<button type="button" lang=${code} translate=${false} onClick=${() => speak(code)}>${name}</button>`,
          )}
        ${isIn && session.keys_are_on && html`<${Who} session=${session} />`}
      </div>
    </header>
    <main id="main">
      <h1 tabindex="-1" ref=${heading}>${title}</h1>
      ${content}
    </main>
    <${Probes} />
  `;
}

const outside = (session, ask) =>
  session.is === "out"
    ? html`<${SignIn} onDone=${ask} />`
    : session.is === "failed"
      ? html`<${ErrorBox} error=${session.error} /><button type="button" onClick=${ask}>${t("again")}</button>`
      : html`<${Busy} />`;

const Navigation = ({ room }) => html`
  <nav aria-label=${t("nav.label")}>
    ${["jobs", "new", "datasets"].map(
      (name) => html`<a href="#/${name}" aria-current=${name === room ? "page" : undefined}>${t(`${name}.title`)}</a>`,
    )}
    <a href="/docs">${t("nav.api")}</a>
  </nav>
`;

const Who = ({ session }) => html`
  <span>${t("session.tenant")} <${User} text=${session.tenant} /></span>
  <button type="button" onClick=${async () => (await remove("/v1/session"), dispatchEvent(new Event("signed-out")))}>
    ${t("session.out")}
  </button>
`;

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("theme") ?? "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    dispatchEvent(new Event("theme"));
  }, [theme]);
  return html`<label>
    <span class="unseen">${t("theme.label")}</span>
    <select value=${theme} onChange=${(event) => setTheme(event.currentTarget.value)}>
      ${THEMES.map((name) => html`<option value=${name}>${t(`theme.${name}`)}</option>`)}
    </select>
  </label>`;
}

await use(preferred());
const app = document.querySelector("#app");
app.replaceChildren();
render(html`<${App} />`, app);
