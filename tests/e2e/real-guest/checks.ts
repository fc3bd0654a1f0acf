// What steps say when something is not as it has to be.

export function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

export const equal = (got: unknown, wanted: unknown, what: string): void =>
  check(got === wanted, `${what} is ${String(got)}, not ${String(wanted)}`);
