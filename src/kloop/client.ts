/** The asking side of another thread's mailbox: sends commands, awaits the acknowledgement. */
import type { MessagePort } from 'node:worker_threads';
import { eventfdSignal, SysError } from '../os/index.ts';
import type { Command, CommandResult, Failure } from './commands.ts';
import { CTL } from './commands.ts';

export interface CommandMessage<C> {
  readonly id: number;
  readonly command: C;
}

export interface ReplyMessage {
  readonly id: number;
  readonly result: CommandResult;
}

/** One thread's way to send commands to another, in order, each answered when it has taken effect. */
export class Mailbox<C> {
  readonly #port: MessagePort;
  readonly #announce: () => void;
  readonly #pending = new Map<number, { resolve: (value: number) => void; reject: (error: Error) => void }>();
  #next = 1;
  #closed = false;

  /** @param announce tells the other thread that mail has come, if it does not look by itself */
  constructor(port: MessagePort, announce: () => void = () => {}) {
    this.#port = port;
    this.#announce = announce;
    port.on('message', (reply: ReplyMessage) => {
      const waiting = this.#pending.get(reply.id);
      this.#pending.delete(reply.id);
      if (this.#pending.size === 0) port.unref();
      if ('error' in reply.result) waiting?.reject(errorOf(reply.result));
      else waiting?.resolve(reply.result.value);
    });
    port.on('close', () => {
      this.#closed = true;
      for (const { reject } of this.#pending.values()) reject(ended());
      this.#pending.clear();
    });
    port.unref();
  }

  /** Has a command carried out. @throws Error, SysError: the other thread's own if it failed; or it has ended (R20) */
  call(command: C): Promise<number> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(ended());
        return;
      }
      this.#pending.set(id, { resolve, reject });
      this.#port.ref();
      this.#port.postMessage({ id, command } satisfies CommandMessage<C>);
      this.#announce();
    });
  }
}

const errorOf = ({ error, errno }: Failure): Error =>
  errno === undefined ? new Error(error) : new SysError(error, errno);

const ended = (): Error => new Error('the thread that was asked has ended');

/** Wakes a datapath thread so that it looks at its mailbox. One that is only starting looks there before it first sleeps. */
export function ringDoorbell(ctl: Int32Array): void {
  Atomics.store(ctl, CTL.MAIL, 1);
  const doorbell = Atomics.load(ctl, CTL.DOORBELL);
  if (doorbell !== 0) eventfdSignal(doorbell);
}

/** A mailbox of a datapath thread, which sleeps in epoll and has to be woken. */
export function datapathMailbox(port: MessagePort, ctl: Int32Array): Mailbox<Command> {
  return new Mailbox(port, () => ringDoorbell(ctl));
}
