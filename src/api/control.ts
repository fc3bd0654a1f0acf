/**
 * The client of a daemon's control socket (src/abi/control.ts): one request and one reply a connection, a JSON line each.
 * Errors say what to do about them.
 */
import { join } from 'node:path';
import type { ControlEvent, ControlReply, ControlRequest, DaemonStatus, ValeCtlCommand } from '../abi/index.ts';
import { CONTROL_MAX_LINE, CONTROL_SOCKET } from '../abi/index.ts';
import { closeFd, connectUnix, defaultRunDir, errno, MessageSocket, SysError, watch } from '../os/index.ts';

/** Longest time a daemon may take to answer, ms. Opening a port allocates and maps its memory. */
const REPLY_TIMEOUT_MS = 20_000;

const ENDED = 'ended the connection before it answered';

type Reply<Op> = Extract<ControlReply, { ok: true; op: Op }>;

/** A successful exchange. The caller owns the connection and the descriptors. */
export interface Exchange<R> {
  readonly reply: R;
  /** The connection: for `open`, its end is the end of the port. */
  readonly connection: number;
  /** Descriptors that came with the reply. */
  readonly fds: readonly number[];
}

/**
 * Sends one request to the daemon of a run directory.
 * @throws SysError: no daemon, no permission, or what the daemon answered
 */
export async function controlRequest<R extends ControlRequest>(
  runDir: string,
  request: R,
): Promise<Exchange<Reply<R['op']>>> {
  const connection = connect(runDir);
  const fds: number[] = [];
  try {
    const line = await exchange(connection, `${JSON.stringify(request)}\n`, fds, runDir);
    const reply = parseReply(line, runDir);
    if (!reply.ok) throw replyError(reply);
    if (reply.op !== request.op) throw new SysError(`the daemon in ${runDir} answered "${reply.op}"`, errno.EPROTO);
    return { reply: reply as unknown as Reply<R['op']>, connection, fds };
  } catch (e) {
    closeFd(connection);
    for (const fd of fds) closeFd(fd);
    throw e;
  }
}

/** What a daemon serves: ports, domains, counters. @param runDir the daemon's run directory */
export async function listDaemon(runDir: string = defaultRunDir()): Promise<DaemonStatus> {
  const { reply, connection } = await controlRequest(runDir, { op: 'list' });
  closeFd(connection);
  return reply.daemon;
}

/** Runs one of vale-ctl's operations (src/abi/control.ts). @throws SysError with the daemon's reason */
export async function valeCtl(command: ValeCtlCommand, runDir: string = defaultRunDir()): Promise<Reply<'vale-ctl'>> {
  const { reply, connection } = await controlRequest(runDir, { op: 'vale-ctl', command });
  closeFd(connection);
  return reply;
}

/** Asks a daemon to end; returns when it has taken the request. */
export async function stopDaemon(runDir: string = defaultRunDir()): Promise<void> {
  const { connection } = await controlRequest(runDir, { op: 'stop' });
  closeFd(connection);
}

/** Reads what the daemon said of an open port's end, from its connection; undefined if nothing. Does not wait. */
export function removalReason(connection: number): () => string | undefined {
  let said: string | undefined;
  return () => {
    if (said !== undefined) return said;
    const chunk = new Uint8Array(new ArrayBuffer(4096));
    try {
      const { bytes } = new MessageSocket(connection, 0).receive(chunk);
      const [line = ''] = new TextDecoder().decode(chunk.subarray(0, bytes)).split('\n');
      said = (JSON.parse(line) as ControlEvent).reason;
    } catch {
      // It said nothing, or not enough.
    }
    return said;
  };
}

function connect(runDir: string): number {
  try {
    return connectUnix(join(runDir, CONTROL_SOCKET));
  } catch (e) {
    if (!(e instanceof SysError)) throw e;
    if (e.errno === errno.ENOENT || e.errno === errno.ECONNREFUSED) {
      throw new SysError(
        `no ptnet daemon runs in ${runDir}: start one with "ptnet host", or name its directory (--run-dir, runDir)`,
        e.errno,
      );
    }
    if (e.errno === errno.EACCES || e.errno === errno.EPERM) {
      throw new SysError(`the daemon in ${runDir} belongs to another user, who has to permit you to use it`, e.errno);
    }
    throw e;
  }
}

/** Sends the line, returns the line that comes back. Descriptors that come with it are added to `fds`. */
function exchange(connection: number, line: string, fds: number[], runDir: string): Promise<string> {
  const socket = new MessageSocket(connection, 2);
  const chunk = new Uint8Array(new ArrayBuffer(65536));
  const received: Buffer[] = [];
  let length = 0;
  let unsent: Uint8Array = Uint8Array.from(Buffer.from(line));
  return new Promise<string>((resolve, reject) => {
    const done = (action: () => void): void => {
      clearTimeout(timer);
      watcher.close();
      action();
    };
    const fail = (text: string, errnoValue: number): void =>
      done(() => reject(new SysError(`the daemon in ${runDir} ${text}`, errnoValue)));
    const step = ({ readable, writable }: { readable: boolean; writable: boolean }): void => {
      if (writable && unsent.length > 0) {
        unsent = unsent.subarray(socket.send(unsent));
        if (unsent.length === 0) watcher.update({ readable: true, writable: false });
      }
      if (!readable) return;
      const got = socket.receive(chunk);
      fds.push(...got.fds);
      if (got.again) return;
      if (got.truncated) return fail('sent more descriptors than asked for', errno.EPROTO);
      if (got.ended) return fail(ENDED, errno.ECONNRESET);
      const newline = chunk.subarray(0, got.bytes).indexOf(10);
      received.push(Buffer.from(chunk.slice(0, newline < 0 ? got.bytes : newline)));
      length += got.bytes;
      if (length > CONTROL_MAX_LINE) return fail(`sent more than ${CONTROL_MAX_LINE} bytes`, errno.EMSGSIZE);
      if (newline >= 0) done(() => resolve(Buffer.concat(received).toString()));
    };
    const watcher = watch(connection, { readable: true, writable: true }, (ready) => {
      try {
        step(ready);
      } catch (e) {
        if (e instanceof SysError && e.errno === errno.EPIPE) fail(ENDED, errno.ECONNRESET);
        else done(() => reject(e as Error));
      }
    });
    const timer = setTimeout(
      () => fail(`has not answered for ${REPLY_TIMEOUT_MS / 1000} s: is it stopped?`, errno.ETIMEDOUT),
      REPLY_TIMEOUT_MS,
    );
  });
}

function parseReply(line: string, runDir: string): ControlReply {
  try {
    return JSON.parse(line) as ControlReply;
  } catch {
    throw new SysError(`the daemon in ${runDir} answered no JSON: ${line.slice(0, 80)}`, errno.EPROTO);
  }
}

/** The daemon's refusal as an error. Its text may end with the errno's name, which SysError adds again. */
function replyError(reply: { readonly error: string; readonly errno: string }): SysError {
  const text = reply.error.endsWith(`: ${reply.errno}`) ? reply.error.slice(0, -reply.errno.length - 2) : reply.error;
  return new SysError(text, (errno as Readonly<Record<string, number>>)[reply.errno] ?? errno.EIO);
}
