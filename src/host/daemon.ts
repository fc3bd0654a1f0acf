/**
 * The daemon: wires threads, switchboard, control socket and configuration together, and ends in order (R20).
 * Runs on the main thread, which owns configuration, ports, domains and the control socket.
 */
import type { ControlRequest, DaemonStatus, OpenOptions, VmStatus } from '../abi/index.ts';
import type { KloopEvent } from '../kloop/index.ts';
import { closeFd, errno, exitNow, type PeerCredentials, socketPair, SysError } from '../os/index.ts';
import { type PortName, parsePortName, pipeNeeds, portNeeds } from '../ports/index.ts';
import { DMA_MAPS_MAX } from '../vfio-user/index.ts';
import { accessOf, type DaemonConfig, mayMonitor, mayOpen, type UserAccess } from './config.ts';
import type { ControlAnswer } from './control-server.ts';
import { ControlServer } from './control-server.ts';
import type { DevicesEvent } from './devices.ts';
import type { Logger } from './log.ts';
import { createLogger } from './log.ts';
import { regionSizes } from './region-sizes.ts';
import { isMonitor } from './monitors.ts';
import { NicOffloads } from './nic-offloads.ts';
import { hostRingsName, parseInterface } from './nics.ts';
import { takeState } from './opens.ts';
import { isOwn, regionBytes, type RegionSizes } from './regions.ts';
import { RunDir } from './run-dir.ts';
import { configuredShape, shapeOf } from './shape.ts';
import { daemonStatus } from './status.ts';
import { type PortGroup, Switchboard } from './switchboard.ts';
import { Threads } from './threads.ts';
import { valeCtlRequest } from './vale-ctl-request.ts';

/** Longest orderly end; then the process is ended as it is (R20). */
const END_MS = 2000;
const END_STEP_MS = 100;
/** Most extra buffers of an open. */
const MAX_EXTRA_BUFS = 65536;
/** DMA_MAPs of a local process, each of which makes the daemon hold a descriptor. Our driver needs one. */
const LOCAL_DMA_MAPS = 32;

export interface DaemonExit {
  readonly code: number;
  readonly reason: string;
}

/** What an open is counted as. */
interface OpenPort {
  readonly uid: number;
  /** Bytes of its region, or of what it takes of a region that others made. */
  readonly bytes: number;
  /** @ID of a region of the user's own, which counts once however many ports are in it. */
  readonly own: string | undefined;
}

export class Daemon {
  readonly config: DaemonConfig;
  readonly version: string;
  readonly log: Logger;
  /** Resolves when the daemon has ended, in whatever way; the process should end then. */
  readonly exited: Promise<DaemonExit>;
  readonly #runDir: RunDir;
  readonly #vms: VmStatus[] = [];
  /** Ports that local processes have or are about to get. */
  readonly #opened = new Set<OpenPort>();
  #threads!: Threads;
  #switchboard!: Switchboard;
  #control: ControlServer | undefined;
  #resolveExited!: (exit: DaemonExit) => void;
  #stopping: Promise<void> | undefined;
  #ending = false;

  private constructor(config: DaemonConfig, version: string, log: Logger) {
    this.config = config;
    this.version = version;
    this.log = log;
    this.exited = new Promise((resolve) => (this.#resolveExited = resolve));
    this.#runDir = new RunDir(config.runDir, this.#shared);
  }

  /**
   * Starts a daemon: when this resolves, its control socket and the VMs' device sockets are there.
   * @throws RunDirError, ArenaFullError, …: nothing is left then
   */
  static async start(config: DaemonConfig, version: string): Promise<Daemon> {
    const daemon = new Daemon(config, version, createLogger(config.logLevel));
    try {
      await daemon.#start();
    } catch (e) {
      const late = daemon.#late(1);
      await daemon.#end().catch((failed: unknown) => daemon.log.error({ err: failed }, 'the end was not orderly'));
      clearInterval(late);
      throw e;
    }
    return daemon;
  }

  /** Whether the configuration lets users other than the daemon's own and root do anything. */
  get #shared(): boolean {
    return [...this.config.users.keys()].some((uid) => uid !== 0 && uid !== process.getuid!());
  }

  async #start(): Promise<void> {
    const { config } = this;
    this.#threads = await Threads.start(config, {
      onKloopEvent: (thread, event) => this.#onKloopEvent(thread, event),
      onDevicesEvent: (event) => this.#onDevicesEvent(event),
      onFailure: (thread, error) => {
        this.log.fatal({ err: error }, `thread ${thread}: ${error.message}`);
        void this.stop(`thread ${thread} failed: ${error.message}`, 1);
      },
    });
    if (this.#stopping !== undefined) throw new Error('a thread failed while the daemon was starting');
    const log = (level: 'info' | 'warn', message: string): void => this.log[level](message);
    const offloads = new NicOffloads(this.#runDir.offloads, log);
    offloads.recover();
    this.#switchboard = new Switchboard(
      this.#threads,
      (id) => regionSizes(config, id),
      log,
      (iface) => config.interfaces.mayCutOff.includes(parseInterface(iface).iface),
      offloads,
    );
    for (const [name, vm] of Object.entries(config.vms)) await this.#addVm(name, vm);
    this.#control = new ControlServer(this.#runDir.controlSocket, (request, peer) => this.#request(request, peer), {
      mode: this.#shared ? 0o666 : 0o600,
      warn: (message) => this.log.error(message),
    });
    this.log.info(`ptnet ${this.version} runs in ${this.#runDir.path}`);
  }

  async #addVm(name: string, vm: DaemonConfig['vms'][string]): Promise<void> {
    const parsed = vm.ports.map((port) => parsePortName(port));
    const sockets = this.#runDir.vmSockets(name);
    const { bufSize, vnetHdr, hugePages } = this.config.ports;
    const uids = [process.getuid!(), 0];
    const group = await this.#switchboard.open(
      { vm: name },
      name,
      bufSize,
      (i) => ({ path: sockets.memdev(i), uids }),
      parsed.map((port, i) => ({
        name: port.text,
        config: configuredShape(this.config, port),
        endpoint: { path: sockets.ptnet(i), uids },
      })),
      {
        trustUnsealedMemory: vm.trustUnsealedMemory,
        clientHugePages: true,
        hugePages: vm.hugePages ?? hugePages,
        vnetHdr: vm.vnetHdr ?? vnetHdr,
        bar64: vm.bar64 ?? true,
        maxDmaMaps: DMA_MAPS_MAX,
        mayUse: () => true,
        mayMonitor: () => true,
      },
    );
    this.#vms.push({
      name,
      ports: vm.ports,
      sockets: [...group.memdevs.map((_, i) => sockets.memdev(i)), ...vm.ports.map((_, i) => sockets.ptnet(i))],
      regionBytes: group.memdevs.reduce((sum, { region }) => sum + region.region.layout.size, 0),
    });
  }

  status(): DaemonStatus {
    return daemonStatus(this.#switchboard, {
      version: this.version,
      runDir: this.#runDir.path,
      vms: this.#vms,
      datapaths: this.#threads.datapaths,
    });
  }

  /** Names of VMs that are connected to their devices: they run. */
  attachedVms(): string[] {
    const opens = [...this.#switchboard.domains].flatMap((d) => [...d.ports]).flatMap((p) => [...p.opens]);
    const names = opens.flatMap(({ owner, state }) => (state.attached && 'vm' in owner ? [owner.vm] : []));
    return [...new Set(names)];
  }

  /** Ends the daemon: in order if that takes at most 2 s, else at once (R20). Resolves `exited`. */
  stop(reason: string, code = 0): Promise<void> {
    this.#stopping ??= this.#stop(reason, code);
    return this.#stopping;
  }

  async #stop(reason: string, code: number): Promise<void> {
    this.#ending = true;
    this.log.info(`stopping: ${reason}`);
    const late = this.#late(code);
    try {
      await this.#end();
    } catch (e) {
      this.log.error({ err: e }, 'the end was not orderly');
    }
    clearInterval(late);
    this.#resolveExited({ code, reason });
  }

  /** Ends the process as it is, unless that is cleared in time (R20). */
  #late(code: number): NodeJS.Timeout {
    // In steps: while the process does not get to run at all, nobody can end.
    let steps = 0;
    return setInterval(() => {
      if (++steps * END_STEP_MS < END_MS) return;
      this.log.error('the threads did not end in time; ending the process');
      this.#leave();
      exitNow(code === 0 ? 1 : code);
    }, END_STEP_MS);
  }

  async #end(): Promise<void> {
    this.#control?.close();
    try {
      if (this.#threads !== undefined) {
        this.#threads.wakeAll();
        try {
          await this.#threads.devices.call({ op: 'end' });
        } finally {
          await this.#threads.end();
        }
      }
    } finally {
      this.#leave();
    }
  }

  /** What the process has to give back itself, as its end does not. */
  #leave(): void {
    if (this.#switchboard !== undefined) this.#switchboard.releaseInterfaces();
    this.#runDir.close();
  }

  #onKloopEvent(thread: number, event: KloopEvent): void {
    if (event.event === 'nic') this.log.error(`a queue of an interface could not be opened again: ${event.error}`);
    if (event.event !== 'trap') return;
    const domain = this.#switchboard.domainAt(thread, event.domain);
    if (domain !== undefined) domain.error = event.error;
    this.log.error(`${domain?.name ?? '?'} was stopped by a fault in the datapath: ${event.error}`);
  }

  #onDevicesEvent(event: DevicesEvent): void {
    if (event.event === 'log') {
      this.log[event.level](event.message);
      return;
    }
    const open = this.#switchboard.openOf(event.id);
    if (open === undefined) return;
    const says = takeState(open, event.state);
    if (says !== undefined) this.log.info(says);
  }

  async #request(request: ControlRequest, peer: PeerCredentials): Promise<ControlAnswer> {
    switch (request.op) {
      case 'open':
        return this.#open(request.port, request.options ?? {}, peer);
      case 'list':
        return { reply: { ok: true, op: 'list', daemon: this.status() } };
      case 'vale-ctl':
        return { reply: await valeCtlRequest(this.#switchboard, this.config.ports, request.command, peer) };
      case 'stop':
        if (peer.uid !== 0 && peer.uid !== process.getuid!()) {
          throw new SysError('stop: only the user of the daemon and root may do that', errno.EPERM);
        }
        setImmediate(() => void this.stop(`asked by process ${peer.pid}`));
        return { reply: { ok: true, op: 'stop' } };
      default:
        throw new SysError(`unknown request "${String((request as { op?: unknown }).op)}"`, errno.EINVAL);
    }
  }

  /** A local process opens a port by name (R21). */
  async #open(name: string, options: OpenOptions, peer: PeerCredentials): Promise<ControlAnswer> {
    if (typeof name !== 'string') throw new SysError('open: "port" has to be a name', errno.EINVAL);
    const parsed = parsePortName(name);
    const { bufSize, vnetHdr, hugePages, ...asked } = shapeOf(this.config.ports, options, parsed.conf);
    const named = hostRingsName(parsed);
    // Before anything that depends on what there is: who may not open an interface does not hear whether the host has it.
    const access = this.#access(named, peer);
    const { regionId, ...plan } = this.#switchboard.plan(named, asked, bufSize);
    const { extraBufs = 0 } = options;
    if (!Number.isInteger(extraBufs) || extraBufs < 0 || extraBufs > MAX_EXTRA_BUFS) {
      throw new SysError(
        `open: extraBufs ${extraBufs}: a whole number from 0 to ${MAX_EXTRA_BUFS} is wanted`,
        errno.EINVAL,
      );
    }
    const needs = parsed.kind === 'pipe' && !isMonitor(parsed) ? pipeNeeds(plan.config) : portNeeds(plan.config);
    const buffers = needs.buffers + extraBufs;
    const alone = { interfaces: needs.rings, ...needs, buffers, bufSize: plan.bufSize, hugePages };
    // Counted from now on, so that many requests at a time get no more than one after the other.
    const opened = this.#quota(named, peer, access, regionId, alone);
    this.#opened.add(opened);
    const sockets: [number, number][] = [];
    try {
      sockets.push(socketPair());
      sockets.push(socketPair());
    } catch (e) {
      this.#opened.delete(opened);
      for (const fd of sockets.flat()) closeFd(fd);
      throw e;
    }
    const [[memdev, memdevPeer], [ptnet, ptnetPeer]] = sockets as [[number, number], [number, number]];
    const memdevEndpoint = { fd: memdev };
    let group: PortGroup;
    try {
      group = await this.#switchboard.open(
        { pid: peer.pid, uid: peer.uid },
        `process ${peer.pid} ${name}`,
        bufSize,
        () => memdevEndpoint,
        [{ name, config: asked, extraBufs, endpoint: { fd: ptnet } }],
        {
          trustUnsealedMemory: false,
          clientHugePages: false,
          hugePages,
          vnetHdr,
          bar64: true,
          maxDmaMaps: LOCAL_DMA_MAPS,
          bufSize: options.bufSize,
          mayUse: (id) => mayOpen(access, `@${id}`),
          mayMonitor: (monitor) => mayMonitor(access, monitor),
        },
      );
      await this.#checkSize(named, group, opened);
    } catch (e) {
      this.#opened.delete(opened);
      for (const fd of [memdevPeer, ptnetPeer]) closeFd(fd);
      throw e;
    }
    this.log.info(`${name}: opened by process ${peer.pid}`);
    return {
      reply: { ok: true, op: 'open', port: name },
      fds: [memdevPeer, ptnetPeer],
      onOpen: (tell) => {
        for (const open of group.opens) open.tellGone = (reason) => tell({ event: 'gone', reason });
      },
      onEnd: () => {
        if (this.#ending) return;
        this.#switchboard.close(group).then(
          () => {
            this.#opened.delete(opened);
            this.log.info(`${name}: closed`);
          },
          (e: unknown) => {
            // Both may close it if the daemon ends meanwhile; it is closed then.
            if (!this.#ending) this.log.error({ err: e }, `${name}: could not be closed`);
          },
        );
      },
    };
  }

  /** Closes a monitor whose port became a larger one after the monitor was counted. */
  async #checkSize(name: PortName, group: PortGroup, { bytes }: OpenPort): Promise<void> {
    const [{ region }] = group.memdevs as [PortGroup['memdevs'][number]];
    const alone = isMonitor(name) && name.share === undefined && region.id === undefined;
    if (!alone || region.region.layout.fileSize <= bytes) return;
    await this.#switchboard.close(group);
    throw new SysError(`open ${name.text}: ${name.name} has changed meanwhile: open the monitor again`, errno.EAGAIN);
  }

  /** What a user may do, if he may open this port. @throws SysError EPERM */
  #access(port: PortName, { uid }: PeerCredentials): UserAccess {
    const { name, text } = port;
    const access = accessOf(this.config, uid);
    if (access !== undefined && (mayOpen(access, name) || (isMonitor(port) && mayMonitor(access, text)))) return access;
    throw new SysError(`open ${name}: the configuration does not let user ${uid} open this port`, errno.EPERM);
  }

  /**
   * Whether a user may have another port now; what is then counted against him.
   * @param memId of the region that it will lie in @param alone sizes of the one it needs if it gets one to itself
   * @throws SysError EDQUOT
   */
  #quota(
    { name }: PortName,
    { uid, pid }: PeerCredentials,
    access: UserAccess,
    memId: string | undefined,
    alone: RegionSizes,
  ): OpenPort {
    const mine = [...this.#opened].filter((o) => o.uid === uid);
    if (mine.length >= access.maxPorts) {
      throw new SysError(
        `open ${name}: user ${uid} has ${mine.length} ports open, all that maxPorts allows`,
        errno.EDQUOT,
      );
    }
    // Who first names a region makes it, and all of its file may become memory, also what the layout does not use.
    const named = memId === undefined ? undefined : [...this.#switchboard.regions].find(({ id }) => id === memId);
    const own = memId !== undefined && (named === undefined || isOwn(named, { pid, uid })) ? memId : undefined;
    const sizes = own === undefined ? alone : regionSizes(this.config, own);
    const bytes = regionBytes(sizes);
    const used = mine.reduce((sum, o, i) => {
      const counted = o.own !== undefined && (o.own === own || mine.findIndex((p) => p.own === o.own) < i);
      return counted ? sum : sum + o.bytes;
    }, 0);
    if (used + bytes > access.maxMemory) {
      const has = `user ${uid} has ${used} bytes of regions, and maxMemory allows ${access.maxMemory}`;
      throw new SysError(`open ${name}: the port needs ${bytes} bytes; ${has}`, errno.EDQUOT);
    }
    return { uid, bytes, own };
  }
}

/** Starts a daemon with a configuration. */
export function startDaemon(config: DaemonConfig, version: string): Promise<Daemon> {
  return Daemon.start(config, version);
}
