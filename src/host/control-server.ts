/**
 * The control socket: one JSON line in, one JSON line out (src/abi/control.ts). An `open` keeps its connection; its end,
 * however the process ended, is the end of the port. Runs on the control thread's event loop; nothing here blocks.
 */
import type { ControlEvent, ControlReply, ControlRequest } from '../abi/index.ts';
import { ArenaFullError, RegionFullError } from '../memory/index.ts';
import type { PeerCredentials, Watch } from '../os/index.ts';
import { closeFd, errno, listenUnix, MessageSocket, peerCredentials, SysError, watch } from '../os/index.ts';
import type { Acceptor } from './acceptor.ts';
import { acceptor } from './acceptor.ts';

export interface ControlAnswer {
  readonly reply: ControlReply;
  /** Descriptors sent with the reply and closed then. */
  readonly fds?: readonly number[];
  /** Called when the connection of a successful `open` ends. */
  readonly onEnd?: () => void;
  /** Called when the reply to a successful `open` was sent, with a way to say more. */
  readonly onOpen?: (tell: (event: ControlEvent) => void) => void;
}

export type ControlHandler = (request: ControlRequest, peer: PeerCredentials) => Promise<ControlAnswer>;

/** A request must be complete after this long, and a reply read. */
const STALL_MS = 5000;
/** Bytes of a request; the longest that means anything is far below. */
const MAX_REQUEST = 16 * 1024;
const MAX_CONNECTIONS = 1024;
/** Connections of one user other than root, so that no user keeps the others out. */
const MAX_USER_CONNECTIONS = 512;

export interface ControlServerOptions {
  /** Who may connect: the file mode of the socket. What they may ask for is the handler's to say (R21). */
  readonly mode: number;
  /** Told what went wrong with the socket itself. */
  readonly warn: (message: string) => void;
}

export class ControlServer {
  readonly #acceptor: Acceptor;
  readonly #handler: ControlHandler;
  readonly #connections = new Set<Connection>();

  constructor(path: string, handler: ControlHandler, { mode, warn }: ControlServerOptions) {
    this.#handler = handler;
    this.#acceptor = acceptor(
      listenUnix(path, mode, 128),
      (fd) => this.#connect(fd),
      (e) => warn(`control socket: nobody can connect now: ${e.message}`),
    );
  }

  #connect(fd: number): void {
    const { uid } = peerCredentials(fd);
    const mine = [...this.#connections].filter((c) => c.uid === uid).length;
    const handler =
      this.#connections.size >= MAX_CONNECTIONS || (uid !== 0 && mine >= MAX_USER_CONNECTIONS)
        ? refuseAll(uid, mine, this.#connections.size)
        : this.#handler;
    const connection = new Connection(fd, handler, () => this.#connections.delete(connection));
    if (handler === this.#handler) this.#connections.add(connection);
    else connection.refuse();
  }

  /** Ends listening and all connections (their ports' ends are the caller's business now). */
  close(): void {
    this.#acceptor.close();
    for (const connection of this.#connections) connection.close();
  }
}

/** Answers that there are too many connections. */
const refuseAll =
  (uid: number, mine: number, all: number): ControlHandler =>
  () => {
    const why = `user ${uid} has ${mine} connections open of ${all} in all; close some ports`;
    return Promise.reject(new SysError(`the daemon takes no more connections: ${why}`, errno.EMFILE));
  };

class Connection {
  readonly #socket: MessageSocket;
  readonly #watch: Watch;
  readonly #handler: ControlHandler;
  readonly #gone: () => void;
  readonly #peer: PeerCredentials;
  readonly #chunk = new Uint8Array(4096);
  #line: Uint8Array[] = [];
  #bytes = 0;
  #asked = false;
  #out: { bytes: Uint8Array; fds: readonly number[] } | undefined;
  #onEnd: (() => void) | undefined;
  #closed = false;
  #stall: NodeJS.Timeout | undefined;

  constructor(fd: number, handler: ControlHandler, gone: () => void) {
    this.#socket = new MessageSocket(fd, 1);
    this.#handler = handler;
    this.#gone = gone;
    this.#peer = peerCredentials(fd);
    this.#stall = setTimeout(() => this.close(), STALL_MS);
    this.#watch = watch(fd, { readable: true, writable: false }, ({ readable, writable }) => {
      try {
        if (writable) this.#flush();
        if (readable && !this.#closed) this.#read();
      } catch {
        this.close();
      }
    });
  }

  get uid(): number {
    return this.#peer.uid;
  }

  /** Answers without having read a request. */
  refuse(): void {
    this.#asked = true;
    clearTimeout(this.#stall);
    void this.#answer('{}');
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#stall);
    this.#watch.close();
    for (const fd of this.#out?.fds ?? []) closeFd(fd);
    closeFd(this.#socket.fd);
    this.#gone();
    this.#onEnd?.();
  }

  #read(): void {
    const got = this.#socket.receive(this.#chunk);
    for (const fd of got.fds) closeFd(fd);
    if (got.again) return;
    if (got.ended) return this.close();
    if (this.#asked) return; // one request a connection: what follows means nothing
    const chunk = this.#chunk.slice(0, got.bytes);
    const end = chunk.indexOf(10);
    this.#line.push(end < 0 ? chunk : chunk.subarray(0, end));
    this.#bytes += got.bytes;
    if (end < 0 && this.#bytes <= MAX_REQUEST) return;
    this.#asked = true;
    clearTimeout(this.#stall);
    const line = Buffer.concat(this.#line);
    this.#line = [];
    void this.#answer(new TextDecoder().decode(line));
  }

  async #answer(line: string): Promise<void> {
    const { reply, fds = [], onEnd, onOpen } = await this.#handle(line);
    if (this.#closed) {
      for (const fd of fds) closeFd(fd);
      onEnd?.();
      return;
    }
    this.#onEnd = onEnd;
    this.#out = { bytes: new TextEncoder().encode(`${JSON.stringify(reply)}\n`), fds };
    this.#stall = setTimeout(() => this.close(), STALL_MS);
    try {
      this.#flush();
      onOpen?.((event) => this.#tell(event));
    } catch {
      this.close();
    }
  }

  /** A client that does not read, or is gone, need not know. */
  #tell(event: ControlEvent): void {
    if (this.#closed || this.#out !== undefined) return;
    try {
      this.#socket.send(new TextEncoder().encode(`${JSON.stringify(event)}\n`));
    } catch {
      this.close();
    }
  }

  async #handle(line: string): Promise<ControlAnswer> {
    try {
      return await this.#handler(parseRequest(line), this.#peer);
    } catch (e) {
      const error = e instanceof Error ? e.message : String(e);
      return { reply: { ok: false, error, errno: codeOf(e) } };
    }
  }

  #flush(): void {
    if (this.#out === undefined) return;
    const { bytes, fds } = this.#out;
    const sent = this.#socket.send(bytes, fds);
    if (sent > 0) for (const fd of fds) closeFd(fd);
    const rest = { bytes: bytes.subarray(sent), fds: sent > 0 ? [] : fds };
    this.#out = rest.bytes.length > 0 ? rest : undefined;
    this.#watch.update({ readable: true, writable: this.#out !== undefined });
    if (this.#out !== undefined) return;
    clearTimeout(this.#stall);
    if (this.#onEnd === undefined) this.close();
  }
}

/** A request's outermost form; the rest is checked by whoever handles it. @throws SysError */
function parseRequest(line: string): ControlRequest {
  if (line.length > MAX_REQUEST) throw new SysError(`the request is longer than ${MAX_REQUEST} bytes`, errno.EMSGSIZE);
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch {
    throw new SysError(`the request is no JSON: ${JSON.stringify(line.slice(0, 80))}`, errno.EINVAL);
  }
  if (typeof request !== 'object' || request === null || Array.isArray(request)) {
    throw new SysError(`the request is no JSON object: ${line.slice(0, 80)}`, errno.EINVAL);
  }
  return request as ControlRequest;
}

/** Name of the errno that an error stands for. */
function codeOf(e: unknown): string {
  if (e instanceof SysError) return e.code;
  return e instanceof RegionFullError || e instanceof ArenaFullError ? 'ENOMEM' : 'EINVAL';
}
