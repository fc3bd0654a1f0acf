/**
 * The control socket: one JSON line in, one JSON line out (src/abi/control.ts). An `open` keeps its connection; its end,
 * however the process ended, is the end of the port. Runs on the control thread's event loop; nothing here blocks.
 */
import type { ControlReply, ControlRequest } from '../abi/index.ts';
import { CONTROL_MAX_LINE } from '../abi/index.ts';
import type { PeerCredentials, Watch } from '../os/index.ts';
import { acceptUnix, closeFd, listenUnix, MessageSocket, peerCredentials, SysError, watch } from '../os/index.ts';

export interface ControlAnswer {
  readonly reply: ControlReply;
  /** Descriptors sent with the reply and closed then. */
  readonly fds?: readonly number[];
  /** Called when the connection of a successful `open` ends. */
  readonly onEnd?: () => void;
}

export type ControlHandler = (request: ControlRequest, peer: PeerCredentials) => Promise<ControlAnswer>;

/** A request must be complete after this long, and a reply read. */
const STALL_MS = 5000;
const MAX_CONNECTIONS = 1024;

export class ControlServer {
  readonly #fd: number;
  readonly #watch: Watch;
  readonly #handler: ControlHandler;
  readonly #connections = new Set<Connection>();

  constructor(path: string, handler: ControlHandler) {
    this.#handler = handler;
    this.#fd = listenUnix(path, 0o600, 128);
    this.#watch = watch(this.#fd, { readable: true, writable: false }, () => this.#accept());
  }

  #accept(): void {
    for (let fd = acceptUnix(this.#fd); fd >= 0; fd = acceptUnix(this.#fd)) {
      if (this.#connections.size >= MAX_CONNECTIONS) {
        closeFd(fd);
        continue;
      }
      const connection = new Connection(fd, this.#handler, () => this.#connections.delete(connection));
      this.#connections.add(connection);
    }
  }

  /** Ends listening and all connections (their ports' ends are the caller's business now). */
  close(): void {
    this.#watch.close();
    closeFd(this.#fd);
    for (const connection of this.#connections) connection.close();
  }
}

class Connection {
  readonly #socket: MessageSocket;
  readonly #watch: Watch;
  readonly #handler: ControlHandler;
  readonly #gone: () => void;
  readonly #peer: PeerCredentials;
  readonly #chunk = new Uint8Array(65536);
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
    if (this.#bytes > CONTROL_MAX_LINE) return this.close();
    if (end < 0) return;
    this.#asked = true;
    clearTimeout(this.#stall);
    void this.#answer(new TextDecoder().decode(Buffer.concat(this.#line)));
    this.#line = [];
  }

  async #answer(line: string): Promise<void> {
    const { reply, fds = [], onEnd } = await this.#handle(line);
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
    } catch {
      this.close();
    }
  }

  async #handle(line: string): Promise<ControlAnswer> {
    try {
      return await this.#handler(JSON.parse(line) as ControlRequest, this.#peer);
    } catch (e) {
      const error = e instanceof Error ? e.message : String(e);
      const errno = e instanceof SysError ? e.code : 'EINVAL';
      return { reply: { ok: false, error, errno } };
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
