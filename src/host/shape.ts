/** The shape of a port that is to be made: what was asked for, over the configuration's defaults. */
import type { OpenOptions } from '../abi/index.ts';
import { NM_BDG_MAXRINGS, NM_BRIDGE_MAXSLOTS } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import { MAX_RINGS_PER_PORT, parsePortName, type PortName } from '../ports/index.ts';
import type { DaemonConfig, PortDefaults } from './config.ts';
import { isMonitor } from './monitors.ts';
import { hostRingsName } from './nics.ts';

const LIMITS = {
  txRings: [1, NM_BDG_MAXRINGS],
  rxRings: [1, NM_BDG_MAXRINGS],
  txSlots: [2, NM_BRIDGE_MAXSLOTS],
  rxSlots: [2, NM_BRIDGE_MAXSLOTS],
  bufSize: [64, 65472],
} as const;

/** @param options from the name (@conf) and the request; what is absent is the default @throws SysError EINVAL */
export function shapeOf(defaults: PortDefaults, ...options: readonly OpenOptions[]): PortDefaults {
  const shape = { ...defaults };
  for (const given of options) {
    for (const [key, [min, max]] of Object.entries(LIMITS) as [keyof typeof LIMITS, readonly [number, number]][]) {
      const value = given[key];
      if (value === undefined) continue;
      if (!Number.isInteger(value) || value < min || value > max) {
        throw new SysError(`open: ${key} ${value}: a whole number from ${min} to ${max} is wanted`, errno.EINVAL);
      }
      shape[key] = value;
    }
  }
  if (shape.bufSize % 64 !== 0)
    throw new SysError(`open: bufSize ${shape.bufSize}: not a multiple of 64`, errno.EINVAL);
  if (shape.txRings + shape.rxRings > MAX_RINGS_PER_PORT) {
    throw new SysError(
      `open: ${shape.txRings} + ${shape.rxRings} rings; at most ${MAX_RINGS_PER_PORT} in all`,
      errno.EINVAL,
    );
  }
  return shape;
}

/** The shape that the configuration gives a VM's port; of a monitor, that of the port it shows if that is a VM's. */
export function configuredShape({ ports, vms }: DaemonConfig, name: PortName): PortDefaults {
  if (!isMonitor(name)) return shapeOf(ports, name.conf);
  const all = Object.values(vms).flatMap((vm) => vm.ports.map((text) => hostRingsName(parsePortName(text))));
  const shown = hostRingsName(name).name;
  return shapeOf(ports, (all.find((port) => port.name === shown && !isMonitor(port)) ?? name).conf);
}
