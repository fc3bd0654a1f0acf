/**
 * The run directory: private to its user (R21), owned by one live daemon at a time. A lock file says so: the lock
 * goes with the process, however it ends, so that the next daemon takes over what a killed one left: it removes the
 * sockets, and the record of offloads tells it what to switch on again (nic-offloads.ts). Where other users
 * may open ports, they may pass through the directory (not list it) to the control socket, and to nothing else.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  ftruncateSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { CONTROL_SOCKET } from '../abi/index.ts';
import { tryLock } from '../os/index.ts';

const LOCK = 'ptnet.lock';
/** Folder of the VMs' device sockets: RUN_DIR/vm/NAME/{memdev,ptnet0,…}.sock. */
const VMS = 'vm';

export class RunDirError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'RunDirError';
  }
}

export class RunDir {
  readonly path: string;
  readonly controlSocket: string;
  /** File of the record of offloads that were switched off. */
  readonly offloads: string;
  readonly #lock: number;

  /**
   * Creates or takes over the directory. Sockets of a daemon that is gone are removed.
   * @param shared other users have to reach the control socket
   * @throws RunDirError if it cannot be written, is not private, or belongs to a live daemon
   */
  constructor(path: string, shared = false) {
    this.path = path;
    const mode = shared ? 0o711 : 0o700;
    this.controlSocket = join(path, CONTROL_SOCKET);
    this.offloads = join(path, 'offloads.json');
    try {
      makeDirs(path, mode);
    } catch (e) {
      throw new RunDirError(`cannot create the run directory: ${text(e)}; choose another with --run-dir`);
    }
    const stat = lstatSync(path);
    const uid = process.getuid!();
    if (!stat.isDirectory()) throw new RunDirError(`the run directory ${path} is not a directory`);
    if (stat.uid !== uid) {
      throw new RunDirError(
        `the run directory ${path} belongs to user ${stat.uid}, not to you (${uid}); choose another with --run-dir`,
      );
    }
    if ((stat.mode & 0o777) !== mode) {
      // Only what is ours is made private: not /tmp, because somebody named it.
      const entries = readdirSync(path);
      if (entries.length > 0 && !entries.includes(LOCK)) {
        throw new RunDirError(
          `the run directory ${path} has other files in it, and is not private (mode ${(stat.mode & 0o7777).toString(8)}): ` +
            'choose another with --run-dir',
        );
      }
      // Before anything is put there; but of a live daemon (it has a lock) nothing is changed.
      if (entries.length === 0) chmodSync(path, mode);
    }
    try {
      this.#lock = openSync(join(path, LOCK), 'a+', 0o600);
    } catch (e) {
      throw unwritable(e);
    }
    if (!tryLock(this.#lock)) {
      const pid = readFileSync(join(path, LOCK), 'utf8').trim();
      closeSync(this.#lock);
      throw new RunDirError(
        `a daemon (process ${pid}) runs in ${path} already: stop it (ptnet stop), or choose another with --run-dir`,
      );
    }
    chmodSync(path, mode);
    try {
      ftruncateSync(this.#lock);
      writeFileSync(this.#lock, `${process.pid}\n`);
    } catch (e) {
      closeSync(this.#lock);
      throw unwritable(e);
    }
    this.#clean();
  }

  /** Makes a VM's folder. Paths of its device sockets: one memdev for each region, one ptnet device for each port. */
  vmSockets(vm: string): { memdev: (i: number) => string; ptnet: (i: number) => string } {
    const folder = join(this.path, VMS, vm);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    return {
      memdev: (i) => join(folder, `memdev${i === 0 ? '' : i}.sock`),
      ptnet: (i) => join(folder, `ptnet${i}.sock`),
    };
  }

  /** Removes the sockets. The lock goes with the process; its file stays, or two daemons could each lock one. */
  close(): void {
    this.#clean();
  }

  #clean(): void {
    rmSync(this.controlSocket, { force: true });
    rmSync(join(this.path, VMS), { recursive: true, force: true });
  }
}

/** Makes a directory, and its parents: nobody else lists them. (Node 20's recursive mkdir never returns below /proc.) */
function makeDirs(path: string, mode: number): void {
  if (!existsSync(dirname(path))) makeDirs(dirname(path), mode);
  try {
    mkdirSync(path, { mode });
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== 'EEXIST' || !lstatSync(path).isDirectory()) throw e;
  }
}

const unwritable = (e: unknown): RunDirError =>
  new RunDirError(`cannot write to the run directory: ${text(e)}; choose another with --run-dir`);

const text = (e: unknown): string => (e instanceof Error ? e.message : String(e));
