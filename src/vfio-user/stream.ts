/**
 * Messages on a transport: reads one whole message at a time, writes whole messages in order, and keeps what is
 * partial (R17). Server and client both stand on this. The reader owns received descriptors until they are taken.
 */
import { closeFd, errno } from '../os/index.ts';
import { BODY, type Message, newMessage, vfio_user_header } from './messages.ts';
import type { Transport } from './transport.ts';

/** Why a connection ended that its client ended in order, between messages. */
export const PEER_CLOSED = 'the peer closed the connection';

/** The stream cannot go on: it ended, or where the next message begins is not known. */
export class StreamError extends Error {
  /** Set if the header that was read can be answered with this errno before closing. */
  readonly replyErrno: number | undefined;
  constructor(message: string, replyErrno?: number) {
    super(message);
    this.name = 'StreamError';
    this.replyErrno = replyErrno;
  }
}

/** Messages up to this size are read into one buffer that is kept, bytes. */
const KEPT = 4096;

export class MessageReader {
  readonly #transport: Transport;
  readonly #maxBytes: number;
  readonly #maxFds: number;
  readonly #kept: Message = newMessage(KEPT - BODY);
  #m = this.#kept.m;
  #size = BODY;
  #got = 0;
  #fds: number[] = [];
  #fault: string | undefined;

  /**
   * @param maxBytes longest message accepted, header included
   * @param maxFds most descriptors kept for one message
   */
  constructor(transport: Transport, maxBytes: number, maxFds: number) {
    this.#transport = transport;
    this.#maxBytes = maxBytes;
    this.#maxFds = maxFds;
  }

  /** True while part of a message is there and the rest is awaited. */
  get partial(): boolean {
    return this.#got > 0 && this.#got < this.#size;
  }

  /** The message read last, valid until the next call of `read`. */
  get message(): Message {
    return { m: this.#m, u8: this.#m.u8.subarray(0, this.#size), size: this.#size };
  }

  /** What is wrong with the descriptors of the message read last; they are closed already. */
  get fault(): string | undefined {
    return this.#fault;
  }

  /** How many descriptors came with the message read last. */
  get fdCount(): number {
    return this.#fds.length;
  }

  /** Hands over the descriptors of the message read last; the caller owns them. */
  takeFds(): number[] {
    const fds = this.#fds;
    this.#fds = [];
    return fds;
  }

  /** Closes descriptors that nobody took. */
  closeFds(): void {
    for (const fd of this.takeFds()) closeFd(fd);
  }

  /** Reads on. Returns true when one whole message is there. @throws StreamError, SysError */
  read(): boolean {
    if (this.#got === this.#size) this.#begin();
    for (;;) {
      const got = this.#transport.receive(this.#m.u8.subarray(this.#got, this.#size));
      this.#keepFds(got.fds);
      if (got.truncated) throw new StreamError('more descriptors than may come in one message (MSG_CTRUNC)');
      if (got.again) return false;
      if (got.ended) {
        if (this.#got === 0) throw new StreamError(PEER_CLOSED);
        const of = this.#got < BODY ? 'header' : `message of ${this.#size} bytes`;
        throw new StreamError(`the peer closed the connection after ${this.#got} bytes of a ${of}`);
      }
      const headerBefore = this.#got >= BODY;
      this.#got += got.bytes;
      if (this.#got < BODY) continue;
      if (!headerBefore) this.#useHeader();
      if (this.#got === this.#size) return true;
    }
  }

  #begin(): void {
    this.closeFds();
    this.#m = this.#kept.m;
    this.#size = BODY;
    this.#got = 0;
    this.#fault = undefined;
  }

  /** Descriptors belong to the message whose header they came with. No more than maxFds are ever held. */
  #keepFds(fds: readonly number[]): void {
    if (fds.length === 0) return;
    if (this.#got >= BODY) this.#fault ??= 'descriptors in the middle of a message';
    else if (this.#fds.length + fds.length > this.#maxFds) this.#fault ??= `more than ${this.#maxFds} descriptors`;
    if (this.#fault === undefined) this.#fds.push(...fds);
    else {
      this.closeFds();
      for (const fd of fds) closeFd(fd);
    }
  }

  #useHeader(): void {
    const size = vfio_user_header.get.msg_size(this.#m, 0);
    if (size < BODY) throw new StreamError(`message size ${size} is less than a header's`, errno.EINVAL);
    if (size > this.#maxBytes) {
      throw new StreamError(`message size ${size} is more than ${this.#maxBytes}`, errno.EINVAL);
    }
    this.#size = size;
    if (size > KEPT) {
      const large = newMessage(size - BODY);
      large.u8.set(this.#m.u8.subarray(0, BODY));
      this.#m = large.m;
    }
  }
}

/** Outgoing messages in order. Their descriptors stay the sender's and must be open until they are sent. */
export class MessageWriter {
  readonly #transport: Transport;
  readonly #queue: { bytes: Uint8Array; fds: readonly number[] }[] = [];

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** True while something waits for the transport to take it. */
  get pending(): boolean {
    return this.#queue.length > 0;
  }

  /** Sends a message now as far as possible, the rest by `flush`. @throws SysError */
  send(message: Message, fds: readonly number[] = []): void {
    this.#queue.push({ bytes: message.u8, fds });
    if (this.#queue.length === 1) this.flush();
  }

  /** Writes what fits. @throws SysError */
  flush(): void {
    for (let head = this.#queue[0]; head !== undefined; head = this.#queue[0]) {
      const sent = this.#transport.send(head.bytes, head.fds);
      if (sent === 0) return;
      if (sent === head.bytes.length) this.#queue.shift();
      else this.#queue[0] = { bytes: head.bytes.subarray(sent), fds: [] };
    }
  }

  /** Forgets what was not sent. */
  clear(): void {
    this.#queue.length = 0;
  }
}
