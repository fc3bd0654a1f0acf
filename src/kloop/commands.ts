/**
 * What other threads ask of a datapath thread. A command travels as a message on a MessagePort, announced by the
 * thread's doorbell; it is carried out between two turns and answered when it has taken effect (R18).
 * Addresses are arena offsets, descriptors are of this process.
 */

import { SysError } from '../os/index.ts';
import type { NicQueueConfig } from './nic-queues.ts';

/** One ring to start: where its CSB halves are mapped. */
export interface RingStart {
  readonly kring: number;
  readonly atok: number;
  readonly ktoa: number;
}

export type Command =
  | /** kind: DOMAIN_VALE (the default), DOMAIN_PIPE, DOMAIN_NULL, DOMAIN_NIC */
  { readonly op: 'domain-add'; readonly domain: number; readonly kind?: number }
  | { readonly op: 'domain-remove'; readonly domain: number }
  | { readonly op: 'port-attach'; readonly domain: number; readonly port: number }
  | { readonly op: 'port-detach'; readonly domain: number; readonly port: number }
  /** Takes a port of a switch to another one of this thread; its rings go on running. */
  | { readonly op: 'port-move'; readonly from: number; readonly to: number; readonly port: number }
  /** A monitor's port, which shows nothing yet. */
  | { readonly op: 'monitor-attach'; readonly domain: number; readonly port: number; readonly kind: number }
  /** Which rx rings of a monitor show which rings of a port of its domain (monitor, kring), until that port is detached. */
  | { readonly op: 'monitor-link'; readonly domain: number; readonly links: readonly (readonly [number, number])[] }
  /** Ends that for a port that stays. */
  | { readonly op: 'monitor-forget'; readonly domain: number; readonly port: number }
  | { readonly op: 'monitor-detach'; readonly domain: number; readonly port: number }
  /** Watches a device's kick eventfd. The sender closes it only after `kick-remove` was answered. */
  | { readonly op: 'kick-add'; readonly fd: number }
  | { readonly op: 'kick-remove'; readonly fd: number }
  /** Sets (fd >= 0) or clears (-1) the eventfds that interrupt the users of rings; old ones are free once answered. */
  | { readonly op: 'irq'; readonly irqs: readonly { readonly kring: number; readonly fd: number }[] }
  /** CREATE: starts all rings of a device, or none. */
  | {
      readonly op: 'start';
      readonly port: number;
      readonly vnetHdrLen: number;
      readonly rings: readonly RingStart[];
    }
  /** DELETE and every other stop: one last sync, then the rings rest; positions stay. */
  | { readonly op: 'stop'; readonly krings: readonly number[] }
  /** Before the slots of stopped rings are rewritten; ended by `reset`. */
  | { readonly op: 'freeze'; readonly krings: readonly number[] }
  /** What rings hold between two turns: of each kring the buffers, in a Uint32Array over shared memory, NO_BUFFER behind the last. */
  | { readonly op: 'held'; readonly krings: readonly number[]; readonly into: readonly Uint32Array[] }
  /** New rings (R19): positions at their start. Only while stopped. */
  | { readonly op: 'reset'; readonly krings: readonly number[] }
  /** Takes a queue of an interface into use, or lets go of it (docs/nics.md). */
  | { readonly op: 'nic-up'; readonly queue: NicQueueConfig }
  | { readonly op: 'nic-down'; readonly queue: number }
  | { readonly op: 'end' };

/** `value`: the port number for port-attach and port-move, or a negative errno; 0 or a positive errno for start; else 0. */
export type CommandResult = { readonly value: number } | Failure;

/** An error as it goes to another thread: that of a system call with its errno, and then without its name in the text. */
export interface Failure {
  readonly error: string;
  readonly errno?: number;
}

/** @param doing what failed, put before the error's text: "datapath: nic-up: " */
export function failure(e: unknown, doing = ''): Failure {
  if (e instanceof SysError) return { error: doing + e.attempt, errno: e.errno };
  return { error: doing + (e instanceof Error ? e.message : String(e)) };
}

/** What a datapath thread says of its own accord, to the control thread. */
export type KloopEvent =
  /** A trap stopped a domain (R2). */
  | { readonly event: 'trap'; readonly domain: number; readonly error: string }
  /** A queue of an interface could not be opened again. */
  | { readonly event: 'nic'; readonly error: string };

/** Behind the last buffer in an answer to `held`. */
export const NO_BUFFER = 0xffff_ffff;

/** Asks what rings hold. @param call sends a command to their datapath thread */
export async function askHeld(
  rings: readonly { readonly kring: number; readonly numSlots: number }[],
  call: (command: Command) => Promise<number>,
): Promise<number[][]> {
  const into = rings.map(({ numSlots }) => new Uint32Array(new SharedArrayBuffer(4 * numSlots)));
  await call({ op: 'held', krings: rings.map((ring) => ring.kring), into });
  return into.map((buffers) => [...buffers].filter((idx) => idx !== NO_BUFFER));
}

/** Words of the thread's control block (Int32Array over a SharedArrayBuffer), shared with the other threads. */
export const CTL = {
  /** Set by whoever rings the doorbell, cleared when mail is taken. */
  MAIL: 0,
  /** 1 while the thread sleeps in epoll. */
  ASLEEP: 1,
  /** Turns of the loop, wrapping: the heartbeat (R15). */
  HEARTBEAT: 2,
  /** 1 + the descriptor being written to, or 0 (R15). */
  WRITING: 3,
  /** 1 while the devices thread watches the heartbeat. */
  WATCHED: 4,
  /** The doorbell's descriptor; 0 while there is none. */
  DOORBELL: 5,
  LENGTH: 16,
} as const;
