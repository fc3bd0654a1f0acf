/** IPv6 addresses on command lines. */

/** The 8 groups of 16 bits of a valid IPv6 address without zone (net.isIPv6). */
export function inet6Groups(address: string): number[] {
  // An IPv4 address at the end is two groups.
  const text = address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...b: string[]) =>
    [0, 2].map((i) => (Number(b[i]) * 256 + Number(b[i + 1])).toString(16)).join(':'),
  );
  const [left = '', right] = text.split('::');
  const parse = (part: string): number[] => (part === '' ? [] : part.split(':').map((g) => Number.parseInt(g, 16)));
  const [head, tail] = [parse(left), parse(right ?? '')];
  return [...head, ...Array<number>(8 - head.length - tail.length).fill(0), ...tail];
}
