// The interface's words in two languages. Knows catalogues and the page's direction; knows nothing of jobs.
// Numbers, dates and units are formatted, and numbers read, here alone.

export const LANGUAGES = { en: "English", ar: "العربية" };
// Latin digits in both: ids, steps and metrics are read next to logs and code.
const LOCALES = { en: "en", ar: "ar-u-nu-latn" };

let language = "en";
let words = {};

export const current = () => language;

/** The language chosen before, or the browser's if we have it. */
export function preferred() {
  const kept = localStorage.getItem("language");
  if (kept in LANGUAGES) return kept;
  return navigator.languages.some((each) => each.startsWith("ar")) ? "ar" : "en";
}

const load = async (path) => (await fetch(path)).json();

/** Loads a language's catalogues, the page's own and the service's sentences, and turns the page to its direction. */
export async function use(code) {
  const [own, sentences] = await Promise.all(["locales", "wording"].map((folder) => load(`/assets/${folder}/${code}.json`)));
  words = { ...sentences, ...own };
  language = code;
  document.documentElement.lang = code;
  document.documentElement.dir = code === "ar" ? "rtl" : "ltr";
}

/**
 * The text of a key, with `{name}` replaced by values. A catalogue has an object of plural forms (one, two, few, many,
 * other) where the value `n` decides. Of a key that no catalogue has, the key itself: a test finds those.
 */
export function t(key, values = {}) {
  return form(key, values.n).replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

/** The text of a key in pieces: every second one is the name of a value. For values that are elements of their own. */
export const pieces = (key, n) => form(key, n).split(/\{(\w+)\}/);

function form(key, n) {
  const text = words[key] ?? key;
  return typeof text === "object" ? (text[new Intl.PluralRules(language).select(n)] ?? text.other) : text;
}

export const has = (key) => key in words;

/** A number in the reader's notation; `digits` significant ones. */
export function number(value, digits = 6) {
  const size = Math.abs(value);
  const options =
    size !== 0 && (size < 1e-3 || size >= 1e15)
      ? { notation: "scientific", maximumSignificantDigits: 4 }
      : { maximumSignificantDigits: Number.isInteger(value) ? 21 : digits };
  return new Intl.NumberFormat(LOCALES[language], options).format(value);
}

/**
 * What was entered for a number, in Western, Arabic or Persian digits. A text that is not a number stays as it is, for the
 * service to refuse: JSON would turn NaN into null.
 */
export function entered(text) {
  const western = text
    .trim()
    .replace(/[\u0660-\u0669\u06f0-\u06f9]/g, (digit) => digit.charCodeAt(0) % 16)
    .replace("\u066b", ".");
  return western !== "" && Number.isFinite(Number(western)) ? Number(western) : text.trim();
}

/** A number with its sign, also if it is positive. */
export const signed = (value, digits) =>
  new Intl.NumberFormat(LOCALES[language], { maximumSignificantDigits: digits, signDisplay: "exceptZero" }).format(value);

/** The same for use in a sentence: written out, without an exponent. */
export const decimal = (value, digits) =>
  new Intl.NumberFormat(LOCALES[language], { maximumSignificantDigits: digits }).format(value);

export function bytes(count) {
  const units = ["b", "kib", "mib", "gib", "tib"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, count)) / 10));
  return t(`size.${units[power]}`, { n: count / 2 ** (10 * power), amount: number(count / 2 ** (10 * power), 3) });
}

/** An estimate of seconds as people say it, to two units and at least a second. Catalogues word it for use after “about”. */
export function duration(seconds) {
  const s = Math.max(1, Math.round(seconds));
  if (s < 60) return t("time.seconds", { n: s });
  if (s < 3600) return t("time.minutes_seconds", { minutes: Math.floor(s / 60), seconds: s % 60 });
  return t("time.hours_minutes", { hours: Math.floor(s / 3600), minutes: Math.floor((s % 3600) / 60) });
}

const DAY = { year: "numeric", month: "short", day: "numeric" };
const CLOCK = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const dated = (iso, options) => new Intl.DateTimeFormat(LOCALES[language], options).format(new Date(iso));

/** Day and time to the minute, in the reader's zone. */
export const instant = (iso) => dated(iso, { ...DAY, ...CLOCK });

/** The same to the second, for events that follow each other. */
export const instantToSecond = (iso) => dated(iso, { ...DAY, ...CLOCK, second: "2-digit" });

/** The same with the name of the zone. */
export const instantInZone = (iso) => dated(iso, { ...DAY, ...CLOCK, second: "2-digit", timeZoneName: "short" });

/** How long ago something was; the day and time if that is a day or more. */
export function ago(iso) {
  const minutes = Math.max(0, Math.floor((Date.now() - new Date(iso)) / 60_000));
  if (minutes >= 24 * 60) return instant(iso);
  const format = new Intl.RelativeTimeFormat(LOCALES[language], { numeric: "auto" });
  if (minutes === 0) return format.format(0, "second");
  return minutes < 60 ? format.format(-minutes, "minute") : format.format(-Math.floor(minutes / 60), "hour");
}
