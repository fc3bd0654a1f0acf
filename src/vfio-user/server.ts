/**
 * The server's side of one connection (R17): reads requests in order, has the device do them one after the other
 * (requests.ts), sends the replies. Nothing blocks; a client that stays in the middle of a message, or leaves a reply
 * unread, for `stallMs` is disconnected. While a request is worked on, or its reply is not yet taken, nothing more is
 * read from that client, so that one message and one reply are all that is ever held for it.
 *
 * Where a bad request leaves the stream in step the client gets an error reply; otherwise it is disconnected. Either way
 * the log says why, and descriptors that no handler took are closed.
 */
import { errno, type Watch } from '../os/index.ts';
import {
  type Capabilities,
  commandName,
  maxMessageBytes,
  newMessage,
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_REPLY,
  VfioUserError,
  vfio_user_header,
} from './messages.ts';
import { type Reply, type Session, serveRequest, type VfioUserDevice } from './requests.ts';
import { MessageReader, MessageWriter, PEER_CLOSED, StreamError } from './stream.ts';
import type { Ready, Transport } from './transport.ts';

/** What is worth a warning, and what only concerns whoever looks for a fault. */
export type LogLevel = 'warn' | 'debug';

export interface ServerOptions {
  /** How long a client may leave a message unfinished or a reply unread, milliseconds (default 5000). */
  readonly stallMs?: number;
  /** Most descriptors accepted in one message (default 16; QEMU accepts no server that says more). */
  readonly maxMsgFds?: number;
  /** Most bytes of one region access (default 1 MiB, the specification's). */
  readonly maxDataXferSize?: number;
  /** Gets a line for every refused request and for the end. */
  readonly log?: (text: string, level: LogLevel) => void;
}

/** Requests served in one turn of the event loop before others get theirs. */
const TURN = 16;
/** Complaints logged for one connection. */
const MAX_COMPLAINTS = 100;

export class ServerConnection {
  /** Resolves when everything is over, the device's `disconnected` included. Gives the reason. Never rejects. */
  readonly closed: Promise<string>;
  readonly #transport: Transport;
  readonly #session: Session;
  readonly #reader: MessageReader;
  readonly #writer: MessageWriter;
  readonly #watch: Watch;
  readonly #stallMs: number;
  readonly #log: (text: string, level: LogLevel) => void;
  #resolveClosed: (reason: string) => void = () => {};
  /** Why the connection ended; undefined while it lasts. */
  #reason: string | undefined;
  /** A handler runs, or its promise is pending. */
  #busy = false;
  #stall: NodeJS.Timeout | undefined;
  #complaints = 0;

  /** Serves a connection from now on. The transport is the connection's; the device stays the caller's. */
  constructor(transport: Transport, device: VfioUserDevice, opts: ServerOptions = {}) {
    const own: Capabilities = {
      maxMsgFds: opts.maxMsgFds ?? 16,
      maxDataXferSize: opts.maxDataXferSize ?? VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
    };
    this.#transport = transport;
    this.#session = { device, own, peer: undefined };
    this.#reader = new MessageReader(transport, maxMessageBytes(own.maxDataXferSize), own.maxMsgFds);
    this.#writer = new MessageWriter(transport);
    this.#stallMs = opts.stallMs ?? 5000;
    this.#log = opts.log ?? (() => {});
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#watch = transport.watch((ready) => this.#onReady(ready));
  }

  /** Ends the connection now: its socket is closed when this returns, `closed` follows when the device is done. */
  close(reason: string): void {
    if (this.#reason !== undefined) return;
    this.#reason = reason;
    clearTimeout(this.#stall);
    this.#watch.close();
    this.#transport.close();
    this.#writer.clear();
    this.#reader.closeFds();
    this.#log(`disconnected: ${reason}`, reason === PEER_CLOSED ? 'debug' : 'warn');
    if (!this.#busy) void this.#end(reason);
  }

  /** Tells the device. Runs after its last handler. */
  async #end(reason: string): Promise<void> {
    try {
      await this.#session.device.disconnected(reason);
    } catch (e) {
      this.#log(`the device failed while disconnecting: ${text(e)}`, 'warn');
    }
    this.#resolveClosed(reason);
  }

  #onReady(ready: Ready): void {
    if (ready.writable && this.#writer.pending) {
      this.#guarded(() => {
        this.#writer.flush();
        if (!this.#writer.pending) this.#notStalled();
      });
    }
    this.#pump();
  }

  /** Reads and serves what can be served now, then waits for what is needed next. */
  #pump(): void {
    this.#guarded(() => {
      for (let n = 0; n < TURN && this.#mayRead(); n++) {
        if (!this.#reader.read()) break;
        this.#notStalled();
        this.#serve();
      }
    });
    if (this.#reason !== undefined) return;
    this.#watch.update({ readable: this.#mayRead(), writable: this.#writer.pending });
    if (this.#reader.partial || this.#writer.pending) this.#stalled();
    else this.#notStalled();
  }

  #mayRead(): boolean {
    return this.#reason === undefined && !this.#busy && !this.#writer.pending;
  }

  /** Starts the clock for the message or reply that is now unfinished, if it does not run yet. */
  #stalled(): void {
    this.#stall ??= setTimeout(() => {
      const what = this.#writer.pending ? 'a reply unread' : 'a message unfinished';
      this.close(`the client left ${what} for ${this.#stallMs} ms`);
    }, this.#stallMs);
  }

  #notStalled(): void {
    clearTimeout(this.#stall);
    this.#stall = undefined;
  }

  /** Runs a step of the stream; what it throws ends the connection. */
  #guarded(step: () => void): void {
    try {
      step();
    } catch (e) {
      if (e instanceof StreamError && e.replyErrno !== undefined) this.#lastReply(e.replyErrno);
      this.close(e instanceof StreamError ? e.message : `the connection failed: ${text(e)}`);
    }
  }

  /** An error reply as far as it goes at once, before the connection is closed. */
  #lastReply(errnoValue: number): void {
    const header = newMessage(0);
    try {
      this.#reply(header, VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, errnoValue, []);
    } catch {
      // The client is gone already; the connection is closed next.
    }
  }

  #serve(): void {
    this.#busy = true;
    let served: Reply | Promise<Reply>;
    try {
      served = serveRequest(this.#session, this.#reader);
    } catch (e) {
      this.#settled(() => this.#refused(e));
      return;
    }
    if (!(served instanceof Promise)) {
      const reply = served;
      this.#settled(() => this.#done(reply));
      return;
    }
    served
      .then(
        (reply) => this.#settled(() => this.#done(reply)),
        (e: unknown) => this.#settled(() => this.#refused(e)),
      )
      .then(() => this.#pump());
  }

  /** After a handler: its reply if the client is still there, else the end that was waiting for it. */
  #settled(answer: () => void): void {
    this.#busy = false;
    if (this.#reason === undefined) this.#guarded(answer);
    else void this.#end(this.#reason);
  }

  #done(reply: Reply): void {
    this.#reply(reply.message, VFIO_USER_F_TYPE_REPLY, 0, reply.fds ?? []);
  }

  #refused(e: unknown): void {
    const m = this.#reader.message.m;
    const what = `request ${vfio_user_header.get.msg_id(m, 0)}, ${commandName(vfio_user_header.get.cmd(m, 0))}`;
    const ours = !(e instanceof VfioUserError);
    // QEMU asks for the error interrupt at every start, and EINVAL is the answer that keeps it silent (docs/abi.md, 4).
    const isQuestion = !ours && vfio_user_header.get.cmd(m, 0) === VFIO_USER_DEVICE_GET_IRQ_INFO;
    this.#complain(
      ours ? `${what}: the device failed: ${text(e)}` : `${what}: ${e.message}`,
      isQuestion ? 'debug' : 'warn',
    );
    this.#reply(newMessage(0), VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR, ours ? errno.EIO : e.errno, []);
  }

  /** Answers the request in the reader, unless it wants no answer. */
  #reply(message: Reply['message'], flags: number, errnoValue: number, fds: readonly number[]): void {
    this.#reader.closeFds();
    const request = this.#reader.message.m;
    if ((vfio_user_header.get.flags(request, 0) & VFIO_USER_F_NO_REPLY) !== 0) return;
    vfio_user_header.set.msg_id(message.m, 0, vfio_user_header.get.msg_id(request, 0));
    vfio_user_header.set.cmd(message.m, 0, vfio_user_header.get.cmd(request, 0));
    vfio_user_header.set.flags(message.m, 0, flags);
    vfio_user_header.set.error_no(message.m, 0, errnoValue);
    this.#writer.send(message, fds);
  }

  #complain(line: string, level: LogLevel): void {
    this.#complaints++;
    if (this.#complaints <= MAX_COMPLAINTS) this.#log(line, level);
    if (this.#complaints === MAX_COMPLAINTS) this.#log('more refused requests of this client are not logged', 'warn');
  }
}

const text = (e: unknown): string => (e instanceof Error ? (e.stack ?? e.message) : String(e));
