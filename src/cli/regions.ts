/** Memory regions in the names of ports that applications are given (docs/memory.md). */

/** The region that a port's name says: what stands behind an "@" and is no option. */
export function regionOf(port: string): string | undefined {
  const parts = port.split('@').slice(1);
  const id = parts.find((part) => !/^(conf:|share[:=]|offset|extmem)/.test(part));
  return id === undefined ? undefined : `@${id}`;
}

/** Whether a name leaves it open in which region the port is to lie: no @ID, no @share, not a machine's own device. */
export function leavesRegionOpen(port: string): boolean {
  return regionOf(port) === undefined && !/@share[:=]/.test(port) && !/^ptnet:\d+$/.test(port);
}
