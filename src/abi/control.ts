/**
 * The control socket's messages, between the daemon and its local clients: one JSON object a line each way over
 * RUN_DIR/control.sock (UNIX stream). A connection carries one request and its reply; after a successful `open` it stays
 * open, and its end is the end of the port. If the daemon takes the port away before, it says why: one ControlEvent.
 */

/** File name of the control socket in the run directory. */
export const CONTROL_SOCKET = 'control.sock';
/** Longest line either side accepts, bytes. */
export const CONTROL_MAX_LINE = 4 * 2 ** 20;

export type ControlRequest =
  /**
   * Creates an ephemeral port and its device. The reply carries two descriptors: connected vfio-user sockets of the
   * memdev and of the ptnet device, in this order.
   */
  | { readonly op: 'open'; readonly port: string; readonly options?: OpenOptions }
  | { readonly op: 'list' }
  /** What vale-ctl asks for (vale-ctl(4)): the letter, and its argument. */
  | { readonly op: 'vale-ctl'; readonly command: ValeCtlCommand }
  /** Asks the daemon to end as SIGTERM would. */
  | { readonly op: 'stop' };

export type ValeCtlCommand =
  /** -n: makes a persistent VALE port. `config` is what -C says, `memId` the @ID of its region (-m). */
  | { readonly letter: 'n'; readonly name: string; readonly config?: string; readonly memId?: string }
  /** -r: removes it. */
  | { readonly letter: 'r'; readonly name: string }
  /**
   * -a: attaches it, or a NIC, to a switch (valeSSS:IF); -h: a NIC and the host's stack behind it. `memId`: the @ID of the
   * region of a NIC's ports (-m).
   */
  | { readonly letter: 'a' | 'h'; readonly name: string; readonly memId?: string }
  /** -d: detaches it. */
  | { readonly letter: 'd'; readonly name: string }
  /** -l: one port of a switch, or all. */
  | { readonly letter: 'l'; readonly name?: string }
  /** -g: shape and region of a port. */
  | { readonly letter: 'g'; readonly name: string };

/** What the daemon says of an open port of its own accord, before it disconnects the port's device. */
export interface ControlEvent {
  readonly event: 'gone';
  readonly reason: string;
}

/** A port of a switch, as vale-ctl lists it. */
export interface ValePort {
  readonly name: string;
  readonly bridgeIdx: number;
  readonly portIdx: number;
}

/** netmap's nmreq_port_info_get. */
export interface PortInfo {
  /** Bytes of the region. */
  readonly memsize: number;
  readonly txSlots: number;
  readonly rxSlots: number;
  readonly txRings: number;
  readonly rxRings: number;
  readonly memId: number;
}

/** The shape of a port that does not exist yet; what is left out is what the configuration says (`ports`), or these defaults. */
export interface OpenOptions {
  /** Slots of each tx and rx ring, 2 to 4096 (1024). */
  readonly txSlots?: number;
  readonly rxSlots?: number;
  /** tx and rx rings, 1 to 16 each, at most 23 in all (1). */
  readonly txRings?: number;
  readonly rxRings?: number;
  /** Bytes of a buffer, a multiple of 64 from 64 to 65472 (2112). */
  readonly bufSize?: number;
  /** Buffers besides those of the rings, on the list ni_bufs_head (nr_extra_bufs), at most 65536; fewer if the region has no more. */
  readonly extraBufs?: number;
}

export type ControlReply =
  | { readonly ok: true; readonly op: 'open'; readonly port: string }
  | { readonly ok: true; readonly op: 'list'; readonly daemon: DaemonStatus }
  | {
      readonly ok: true;
      readonly op: 'vale-ctl';
      /** -l */
      readonly ports?: readonly ValePort[];
      /** -g, -n */
      readonly info?: PortInfo;
      /** -a, -d */
      readonly portIndex?: number;
    }
  | { readonly ok: true; readonly op: 'stop' }
  | { readonly ok: false; readonly error: string; readonly errno: string };

/** What `ptnet list --json` prints. Counters are decimal numbers; they are exact to 2^53. */
export interface DaemonStatus {
  readonly pid: number;
  readonly version: string;
  readonly uptimeSeconds: number;
  readonly runDir: string;
  readonly domains: readonly DomainStatus[];
  readonly regions: readonly RegionStatus[];
  readonly vms: readonly VmStatus[];
  /** Address space of each datapath thread. */
  readonly arenas: readonly ArenaStatus[];
}

/** Address space of a datapath thread, by the thread's number. Bytes. */
export interface ArenaStatus {
  readonly thread: number;
  readonly freeBytes: number;
  /** Free ranges as [byte offset, bytes], in ascending order. */
  readonly freeRanges: readonly (readonly [number, number])[];
}

/** A switch ("vale0"), a pipe ("netmap:x{1"), an interface's port ("netmap:eth1"), or the null ports, and the thread they are on. */
export interface DomainStatus {
  readonly name: string;
  readonly kind: 'vale' | 'pipe' | 'null' | 'nic';
  readonly thread: number;
  /** False after a trap stopped it; `error` says what happened. */
  readonly running: boolean;
  readonly error?: string;
  readonly ports: readonly PortStatus[];
}

/** One open of a port, with the rings it has; or a port that nobody has open, with all its rings. */
export interface PortStatus {
  readonly name: string;
  /** Who has it: a VM's name, the process of a local client; nobody has a persistent port or the other end of a pipe. */
  readonly owner: { readonly vm: string } | { readonly pid: number; readonly uid: number } | { readonly nobody: true };
  readonly mac: string;
  readonly region: string;
  /** Whether a client is connected to the device, and whether its rings run. */
  readonly attached: boolean;
  readonly running: boolean;
  readonly vnetHdrLen: number;
  /** The interface whose port it is (docs/nics.md), how its frames are had, and why not in a better way. */
  readonly interface?: {
    readonly name: string;
    readonly mode: 'native' | 'generic' | 'packet' | 'tap' | 'host';
    readonly because?: string;
    /** native: whether the card reaches the buffers itself; else the kernel copies each frame. */
    readonly zeroCopy?: boolean;
    readonly running: boolean;
    readonly mtu: number;
    readonly gone: boolean;
  };
  readonly txRings: readonly RingStatus[];
  readonly rxRings: readonly RingStatus[];
}

/** A ring since its port was made. */
export interface RingStatus {
  readonly slots: number;
  /** What its user sent (tx) or was given (rx). */
  readonly packets: number;
  readonly bytes: number;
  /** Packets lost, by reason; reasons with 0 are left out. Names are those of the kring's counters. */
  readonly drops: Readonly<Record<string, number>>;
  /** Times that its positions, or a buffer, made no sense and were put right (R7). */
  readonly repairs: number;
  /** Interrupts that its user asked for and got. */
  readonly signals: number;
}

/** A region; `name` is "@ID" or whom it was made for, `memId` the number that its users see (HOSTMEMID, nr_mem_id). */
export interface RegionStatus {
  readonly name: string;
  readonly memId: number;
  readonly bytes: number;
  /** Bytes of a page that it lies on, and why it is not a huge one though it was to be. */
  readonly pageBytes: number;
  readonly because?: string;
  /** Buffers, the two reserved ones included, and those that nobody has. */
  readonly buffers: number;
  readonly freeBuffers: number;
  readonly rings: number;
  readonly freeRings: number;
  /** netmap_if objects: how many more opens there can be. */
  readonly freeInterfaces: number;
}

/** A virtual machine of the configuration; whether it runs is said by its ports' `attached`. */
export interface VmStatus {
  readonly name: string;
  readonly ports: readonly string[];
  /** Sockets in the order QEMU has to be given them: memdev first. */
  readonly sockets: readonly string[];
  /** Bytes of all its regions. */
  readonly regionBytes: number;
}
