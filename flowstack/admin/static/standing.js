/** What is used of a limit, and what is left. */

import { bar, h } from "./dom.js";
import { ahead, count, exact, usd } from "./format.js";

/** Limits that are no money, by what they count. */
export const LIMITS = { rpm: "requests a minute", tpm: "tokens a minute", max_parallel: "requests at once" };

/** How a share of a limit is drawn. */
export const state = (part) => (part >= 1 ? "bad" : part > 0.8 ? "warn" : null);

/** One limit, as the API tells it: its name, a bar, used, left, and when it is free again. */
export function standing(of, now) {
  const money = of.limit === "budget";
  const [used, most, left] = money ? [of.spent_usd, of.amount_usd, of.left_usd] : [of.used, of.most, of.left];
  const show = money ? usd : count;
  const part = most ? used / most : 0;
  return h("div", { class: "standing" },
    h("p", null,
      h("span", null, money ? `budget ${of.period === "total" ? "in all" : `of the ${of.period}`}` : LIMITS[of.limit] ?? of.limit,
        of.group ? [", of ", h("bdi", null, `@${of.group}`)] : "", of.upstream ? [", to ", h("bdi", null, of.upstream)] : ""),
      h("span", null, `${show(used)} of ${show(most)}`)),
    bar(part, { state: state(part) }),
    h("p", { class: "muted" }, h("span", null, `${show(left)} left`),
      of.resets_at && new Date(of.resets_at) > now ? h("span", { title: exact(of.resets_at) }, `${money ? "renewed" : "all free"} ${ahead(of.resets_at, now)}`) : null));
}
