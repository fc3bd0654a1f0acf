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
  /** How often its client has started or stopped the rings. */
  changes: number;
  /** Says to the process that has it why it is taken away; undefined for a VM, or while it is being opened. */
  tellGone: ((reason: string) => void) | undefined;
}

/** Of one client. */
const MAX_LOGGED_CHANGES = 100;

/** Takes what became of a client and its rings. What the log is to say of it: nothing of who starts and stops without end. */
export function takeState(open: Open, state: PtnetState): string | undefined {
  const { attached, running } = open.state;
  open.state = state;
  if (!attached && state.attached) open.changes = 0;
  if (state.running === running || ++open.changes > MAX_LOGGED_CHANGES) return undefined;
  const last = open.changes === MAX_LOGGED_CHANGES ? '; further changes of this client are not logged' : '';
  return `${open.name}: rings ${state.running ? 'running' : 'stopped'}${last}`;
}

/** "VM fw", "process 12". */
export function ownerText(owner: PortOwner): string {
  return 'vm' in owner ? `VM ${owner.vm}` : `process ${owner.pid}`;
}
