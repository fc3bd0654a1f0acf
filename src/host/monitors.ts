/** Monitors by name (docs/monitors.md): what a name asks for, and the rings it takes. Pure. */
import { NR_MONITOR_RX, NR_MONITOR_TX, NR_REG_ALL_NIC, NR_REG_ONE_NIC, NR_ZCOPY_MON } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { PortConfig, PortName, SelectedRings } from '../ports/index.ts';

/** Whether a name asks for a monitor. */
export const isMonitor = ({ flags }: PortName): boolean =>
  (flags & (NR_MONITOR_TX | NR_MONITOR_RX | NR_ZCOPY_MON)) !== 0;
export const isZeroCopyMonitor = ({ flags }: PortName): boolean => (flags & NR_ZCOPY_MON) !== 0;
/** Zero-copy monitors show both directions. */
const shows = (name: PortName, flag: number): boolean => isZeroCopyMonitor(name) || (name.flags & flag) !== 0;

/** The rings of a monitor of a port of this shape: as many slots as that, unless the name says otherwise. @throws SysError */
export function monitorConfig(name: PortName, port: PortConfig): PortConfig {
  if (name.mode !== NR_REG_ALL_NIC && name.mode !== NR_REG_ONE_NIC) {
    throw new SysError(`open ${name.text}: host rings ("^", "*") are those of a NIC; this port has none`, errno.EINVAL);
  }
  const rings = Math.max(port.txRings, port.rxRings);
  const one = name.mode === NR_REG_ONE_NIC;
  if (one && name.ringId >= rings) {
    throw new SysError(`open ${name.text}: there is no ring ${name.ringId}: the port has ${rings}`, errno.EINVAL);
  }
  const rxSlots = name.conf.rxSlots ?? port.rxSlots;
  return { txRings: 1, rxRings: one ? 1 : rings, txSlots: port.txSlots, rxSlots };
}

/** Which ring of a monitor shows which of a port: ring i its pair i, or the one that the name says. As krings. */
export function monitorLinks(
  name: PortName,
  monitor: SelectedRings,
  port: SelectedRings,
): (readonly [monitor: number, ring: number])[] {
  return monitor.rxRings.flatMap((ring, i) => {
    const at = name.mode === NR_REG_ONE_NIC ? name.ringId : i;
    const tx = shows(name, NR_MONITOR_TX) ? port.txRings[at] : undefined;
    const rx = shows(name, NR_MONITOR_RX) ? port.rxRings[at] : undefined;
    return [tx, rx].flatMap((r) => (r === undefined ? [] : [[ring.kring, r.kring] as const]));
  });
}
