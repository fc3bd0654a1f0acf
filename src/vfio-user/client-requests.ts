/**
 * Requests of a client and their replies: ids, time-outs, what a reply may be, and the end of it all. What the requests
 * mean is in client.ts.
 */
import { closeFd, errno, type Watch } from '../os/index.ts';
import {
  BODY,
  commandName,
  maxMessageBytes,
  type Message,
  newMessage,
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_TYPE_MASK,
  VFIO_USER_F_TYPE_REPLY,
  VfioUserError,
  vfio_user_header,
} from './messages.ts';
import { MessageReader, MessageWriter, StreamError } from './stream.ts';
import type { Ready, Transport } from './transport.ts';

/** Descriptors accepted in one reply. */
export const MAX_MSG_FDS = 16;

/** A reply, the caller's own, with its descriptors. */
export interface ClientReply {
  readonly message: Message;
  readonly fds: number[];
}

interface Pending {
  readonly cmd: number;
  readonly maxBody: number;
  readonly maxFds: number;
  readonly timer: NodeJS.Timeout;
  readonly resolve: (reply: ClientReply) => void;
  readonly reject: (e: Error) => void;
}

export class ClientRequests {
  /** Resolves with the reason when the connection is over. Never rejects. */
  readonly closed: Promise<string>;
  readonly #transport: Transport;
  readonly #reader: MessageReader;
  readonly #writer: MessageWriter;
  readonly #watch: Watch;
  readonly #timeoutMs: number;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #reason: string | undefined;
  #resolveClosed: (reason: string) => void = () => {};

  constructor(transport: Transport, timeoutMs: number) {
    this.#transport = transport;
    this.#timeoutMs = timeoutMs;
    this.#reader = new MessageReader(transport, maxMessageBytes(VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE), MAX_MSG_FDS);
    this.#writer = new MessageWriter(transport);
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#watch = transport.watch((ready) => this.#onReady(ready));
  }

  /**
   * Sends a request; resolves with its reply, whose size and descriptors are within the limits.
   * @throws VfioUserError the server refused it, or the connection is over (ECONNRESET) or too slow (ETIMEDOUT)
   */
  send(
    cmd: number,
    message: Message,
    limits: { maxBody: number; maxFds?: number },
    fds: readonly number[] = [],
  ): Promise<ClientReply> {
    return new Promise((resolve, reject) => {
      if (this.#reason !== undefined) {
        reject(lost(cmd, this.#reason));
        return;
      }
      if (this.#pending.size >= 0x8000) {
        reject(new VfioUserError(errno.EAGAIN, `${commandName(cmd)}: ${this.#pending.size} requests wait already`));
        return;
      }
      while (this.#pending.has(this.#nextId)) this.#nextId = (this.#nextId + 1) & 0xffff;
      const id = this.#nextId;
      this.#nextId = (id + 1) & 0xffff;
      const timer = setTimeout(() => this.#timedOut(id), this.#timeoutMs);
      this.#pending.set(id, { cmd, maxBody: limits.maxBody, maxFds: limits.maxFds ?? 0, timer, resolve, reject });
      vfio_user_header.set.msg_id(message.m, 0, id);
      vfio_user_header.set.cmd(message.m, 0, cmd);
      this.#guarded(() => {
        this.#writer.send(message, fds);
        this.#wait();
      });
    });
  }

  #timedOut(id: number): void {
    const p = this.#pending.get(id);
    if (p === undefined) return;
    const what = `no reply to ${commandName(p.cmd)} within ${this.#timeoutMs} ms`;
    this.#pending.delete(id);
    p.reject(new VfioUserError(errno.ETIMEDOUT, what));
    this.close(what);
  }

  #onReady(ready: Ready): void {
    this.#guarded(() => {
      if (ready.writable) this.#writer.flush();
      if (ready.readable) while (this.#reason === undefined && this.#reader.read()) this.#useReply();
      if (this.#reason === undefined) this.#wait();
    });
  }

  #wait(): void {
    this.#watch.update({ readable: true, writable: this.#writer.pending });
  }

  #useReply(): void {
    const { m, size } = this.#reader.message;
    const id = vfio_user_header.get.msg_id(m, 0);
    const cmd = vfio_user_header.get.cmd(m, 0);
    const flags = vfio_user_header.get.flags(m, 0);
    if ((flags & VFIO_USER_F_TYPE_MASK) !== VFIO_USER_F_TYPE_REPLY) {
      throw new StreamError(`the server sent ${commandName(cmd)}, which is no reply`);
    }
    const p = this.#pending.get(id);
    if (p === undefined || p.cmd !== cmd) throw new StreamError(`a reply to ${commandName(cmd)} that nobody waits for`);
    const failed = (flags & VFIO_USER_F_ERROR) !== 0;
    const maxBody = failed ? 0 : p.maxBody;
    const maxFds = failed ? 0 : p.maxFds;
    if (size - BODY > maxBody) throw new StreamError(`reply to ${commandName(cmd)}: ${size} bytes are too many`);
    if (this.#reader.fault !== undefined || this.#reader.fdCount > maxFds) {
      throw new StreamError(
        `reply to ${commandName(cmd)}: ${this.#reader.fault ?? 'descriptors that were not asked for'}`,
      );
    }
    this.#pending.delete(id);
    clearTimeout(p.timer);
    if (failed) {
      const code = vfio_user_header.get.error_no(m, 0);
      p.reject(new VfioUserError(code === 0 ? errno.EIO : code, `the server refused ${commandName(cmd)}`));
      return;
    }
    const message = newMessage(size - BODY); // the reader's own is used again before the caller looks
    message.u8.set(this.#reader.message.u8);
    p.resolve({ message, fds: this.#reader.takeFds() });
  }

  /** Takes a reply apart; what is wrong with it ends the connection and closes its descriptors. */
  checked<T>(r: ClientReply, parse: () => T): T {
    try {
      return parse();
    } catch (e) {
      r.fds.forEach(closeFd);
      this.close(e instanceof Error ? e.message : String(e));
      throw e;
    }
  }

  #guarded(step: () => void): void {
    try {
      step();
    } catch (e) {
      this.close(e instanceof Error ? e.message : String(e));
    }
  }

  /** Ends the connection; requests that wait are rejected. */
  close(reason: string): void {
    if (this.#reason !== undefined) return;
    this.#reason = reason;
    this.#watch.close();
    this.#transport.close();
    this.#writer.clear();
    this.#reader.closeFds();
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    for (const p of waiting) {
      clearTimeout(p.timer);
      p.reject(lost(p.cmd, reason));
    }
    this.#resolveClosed(reason);
  }
}

const lost = (cmd: number, reason: string): VfioUserError =>
  new VfioUserError(errno.ECONNRESET, `${commandName(cmd)}: the connection is over: ${reason}`);
