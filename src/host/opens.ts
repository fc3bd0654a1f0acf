/** What is open: a registration, its device, and who asked for it. */
import type { PtnetState } from '../device/index.ts';
import type { Registration } from '../ports/index.ts';
import type { Port } from './port-table.ts';
import type { PortOwner } from './regions.ts';

export interface Open {
  /** The name it was asked for by, with everything behind it. */
  readonly name: string;
  readonly port: Port;
  readonly owner: PortOwner;
  readonly registration: Registration;
  /** Identifier of the ptnet device in the devices thread. */
  readonly device: number;
  state: PtnetState;
  /** Says to the process that has it why it is taken away; undefined for a VM, or while it is being opened. */
  tellGone: ((reason: string) => void) | undefined;
}

/** "VM fw", "process 12". */
export function ownerText(owner: PortOwner): string {
  return 'vm' in owner ? `VM ${owner.vm}` : `process ${owner.pid}`;
}
