/** Sizes of the regions of @IDs, computed from the configuration (docs/memory.md). */
import { NM_BRIDGE_MAXSLOTS } from '../abi/index.ts';
import { parsePortName, pipeNeeds, portNeeds } from '../ports/index.ts';
import type { DaemonConfig } from './config.ts';
import { isMonitor, monitorConfig } from './monitors.ts';
import { hostRingsName } from './nics.ts';
import type { RegionSizes } from './regions.ts';
import { configuredShape } from './shape.ts';

/** Room in a region of an @ID for what processes open, beyond what VMs need. Costs nothing until it is touched. */
const ROOM = { interfaces: 64, rings: 128, buffers: 32768 };

/** What the configuration says of the region, or else what its VMs need and room for more. */
export function regionSizes(config: DaemonConfig, id: string): RegionSizes {
  const needs = new Map<string, { rings: number; slots: number; buffers: number }>();
  for (const text of Object.values(config.vms).flatMap((vm) => vm.ports)) {
    const name = hostRingsName(parsePortName(text));
    if (name.memId !== id) continue;
    const shape = configuredShape(config, name);
    if (isMonitor(name)) needs.set(text, portNeeds(monitorConfig(name, shape)));
    else if (name.kind === 'pipe') needs.set(name.pipe, pipeNeeds(shape));
    else needs.set(name.name, portNeeds(shape));
  }
  const all = [...needs.values()];
  const rings = all.reduce((sum, n) => sum + n.rings, 0);
  return {
    interfaces: rings + ROOM.interfaces,
    rings: rings + ROOM.rings,
    slots: NM_BRIDGE_MAXSLOTS,
    buffers: all.reduce((sum, n) => sum + n.buffers, 0) + ROOM.buffers,
    bufSize: config.ports.bufSize,
    hugePages: config.ports.hugePages,
    ...config.regions[id],
  };
}
