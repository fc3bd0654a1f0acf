/**
 * The control socket's messages, between the daemon and its local clients: one JSON object a line each way over
 * RUN_DIR/control.sock (UNIX stream). A connection carries one request and its reply; after a successful `open` it stays
 * open, and its end is the end of the port.
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
  /** Asks the daemon to end as SIGTERM would. */
  | { readonly op: 'stop' };

export interface OpenOptions {
  /** Slots of each tx and rx ring, 2 to 4096 (default 1024). */
  readonly txSlots?: number;
  readonly rxSlots?: number;
  /** tx and rx rings, 1 to 16 each (default 1). */
  readonly txRings?: number;
  readonly rxRings?: number;
  /** Bytes of a buffer, a multiple of 64 (default 2048). */
  readonly bufSize?: number;
}

export type ControlReply =
  | { readonly ok: true; readonly op: 'open'; readonly port: string }
  | { readonly ok: true; readonly op: 'list'; readonly daemon: DaemonStatus }
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
}

export interface DomainStatus {
  readonly name: string;
  readonly kind: 'vale';
  readonly thread: number;
  /** False after a trap stopped it; `error` says what happened. */
  readonly running: boolean;
  readonly error?: string;
  readonly ports: readonly PortStatus[];
}

export interface PortStatus {
  readonly name: string;
  /** Who it was made for: a VM's name, or the process of a local client. */
  readonly owner: { readonly vm: string } | { readonly pid: number; readonly uid: number };
  readonly mac: string;
  readonly region: string;
  /** Whether a client is connected to the device, and whether its rings run. */
  readonly attached: boolean;
  readonly running: boolean;
  readonly vnetHdrLen: number;
  readonly txRings: readonly RingStatus[];
  readonly rxRings: readonly RingStatus[];
}

export interface RingStatus {
  readonly slots: number;
  readonly packets: number;
  readonly bytes: number;
  /** Packets lost, by reason; reasons with 0 are left out. Names are those of the kring's counters. */
  readonly drops: Readonly<Record<string, number>>;
  readonly repairs: number;
  readonly signals: number;
}

export interface RegionStatus {
  readonly name: string;
  readonly memId: number;
  readonly bytes: number;
  readonly buffers: number;
  readonly freeBuffers: number;
}

export interface VmStatus {
  readonly name: string;
  readonly ports: readonly string[];
  /** Sockets in the order QEMU has to be given them: memdev first. */
  readonly sockets: readonly string[];
  readonly regionBytes: number;
}
