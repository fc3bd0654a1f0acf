/** Opening ports: by name through a daemon, or on the device sockets of a virtual machine. */
import type { OpenOptions } from '../abi/index.ts';
import {
  NR_DO_RX_POLL,
  NR_NO_TX_POLL,
  PTNET_IO,
  PTNET_MDEV_IO,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_NETIF_ID,
} from '../abi/index.ts';
import type { IfnetOptions, PciDevice } from '../guest/index.ts';
import {
  connectVfioUserPci,
  enableBusMaster,
  findPci,
  Ifnet,
  Memdev,
  openPassivePci,
  openPci,
  PtnetDriver,
} from '../guest/index.ts';
import { closeFd, defaultRunDir, errno, SysError } from '../os/index.ts';
import { controlRequest, removalReason } from './control.ts';
import { NetmapPort } from './port.ts';

/** How a device is driven, however it is reached. */
export interface DeviceOptions {
  /** Ask for a VirtIO network header in front of every frame (offloads). Default false; see `vnetHdrLen`. */
  readonly vnetHdr?: boolean;
}

/** Numbers and sizes of rings are those of the daemon's control protocol (src/abi/control.ts). */
export interface OpenPortOptions extends OpenOptions, DeviceOptions {
  /** The daemon's run directory (default: the user's). */
  readonly runDir?: string;
  /** nr_flags: NR_NO_TX_POLL, NR_DO_RX_POLL. The others are said in the name (/x, /R, /T) or by `vnetHdr`. */
  readonly flags?: number;
}

/** The ports of the virtual machine that this runs in. */
const MACHINE_PORT = /^ptnet:(\d+)$/;

/**
 * Opens a netmap port by name, e.g. "vale0:x": the daemon makes the port and removes it when the port is closed or the
 * process ends. In a virtual machine, "ptnet:0" is the first ptnet device on its PCI bus: no daemon is asked.
 * @throws SysError: no daemon, no device, not permitted, a bad name, no room; the message says what to do
 */
export function openPort(name: string, options: OpenPortOptions = {}): Promise<NetmapPort> {
  const { flags = 0, ...rest } = options;
  if ((flags & ~(NR_NO_TX_POLL | NR_DO_RX_POLL)) !== 0) {
    const what = 'NR_NO_TX_POLL and NR_DO_RX_POLL only: /x /R /T in the name and vnetHdr say the others';
    return Promise.reject(new SysError(`open ${name}: flags 0x${flags.toString(16)}: ${what}`, errno.EINVAL));
  }
  return openNamed(name, rest, (text, driver, memdev, release) => {
    const port = new NetmapPort(text, driver, memdev, release);
    port.pollFlags = flags;
    return port;
  });
}

/** Options of `openInterface`: the port's, and the interface's. */
export interface OpenInterfaceOptions extends Omit<OpenPortOptions, 'flags'>, Omit<IfnetOptions, 'name'> {
  /** Name of the interface (default ptnet0, or the first free number). */
  readonly ifname?: string;
}

/**
 * Opens a netmap port by name and makes it a network interface of this process's network namespace. Frames move
 * while its `run` runs.
 * @throws as openPort, and what Ifnet says
 */
export function openInterface(name: string, options: OpenInterfaceOptions = {}): Promise<Ifnet> {
  const { ifname, mtu, ether, txcsum, rxcsum, tso, lro, ...port } = options;
  const given = { name: ifname, mtu, ether, txcsum, rxcsum, tso, lro };
  const ifnet = Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined)) as IfnetOptions;
  return openNamed(name, port, (_, driver, memdev, release) => new Ifnet(driver, memdev, ifnet, release));
}

type Make<T> = (name: string, driver: PtnetDriver, memdev: Memdev, release: () => Promise<void>) => T;

async function openNamed<T>(name: string, options: OpenPortOptions, make: Make<T>): Promise<T> {
  const { runDir = defaultRunDir(), vnetHdr = false, ...rings } = options;
  const index = MACHINE_PORT.exec(name)?.[1];
  if (index !== undefined) {
    if (Object.keys(rings).length > 0) {
      throw new SysError(`${name}: the host has chosen its rings, this side cannot`, errno.EINVAL);
    }
    return openMachinePort(name, Number(index), vnetHdr, make);
  }
  const { reply, connection, fds } = await controlRequest(runDir, { op: 'open', port: name, options: rings });
  const [memdev, ptnet] = fds;
  if (memdev === undefined || ptnet === undefined) {
    for (const fd of [connection, ...fds]) closeFd(fd);
    throw new SysError(`the daemon in ${runDir} sent ${fds.length} descriptors for port ${name}, not 2`, errno.EPROTO);
  }
  const removal = removalReason(connection);
  return openSockets(reply.port, memdev, ptnet, vnetHdr, () => closeFd(connection), make, removal);
}

/**
 * Opens the devices of a virtual machine, as a driver in it would.
 * @param memdev the memdev's socket: its path, or a connected descriptor, which this takes over
 * @param ptnet the ptnet device's socket
 */
export function openDevice(
  memdev: string | number,
  ptnet: string | number,
  options: DeviceOptions = {},
): Promise<NetmapPort> {
  const name = typeof ptnet === 'string' ? ptnet : `fd ${ptnet}`;
  const make: Make<NetmapPort> = (port, driver, dev, release) => new NetmapPort(port, driver, dev, release);
  return openSockets(name, memdev, ptnet, options.vnetHdr ?? false, () => undefined, make);
}

function openSockets<T>(
  name: string,
  memdev: string | number,
  ptnet: string | number,
  vnetHdr: boolean,
  release: () => void,
  make: Make<T>,
  removal: () => string | undefined = () => undefined,
): Promise<T> {
  // A descriptor belongs to its connection once there is one; until then it is closed here.
  let unused = typeof ptnet === 'number' ? ptnet : -1;
  const devices = {
    memdev: () => connectVfioUserPci(memdev, `memdev of ${name}`),
    ptnet: async () => {
      unused = -1;
      return Object.assign(await connectVfioUserPci(ptnet, `ptnet device of ${name}`), { removal });
    },
  };
  const releaseAll = (): void => {
    closeFd(unused);
    release();
  };
  return open(name, devices, vnetHdr, releaseAll, make);
}

/** Opens a device on this machine's own PCI bus, and the memdev of its region. */
function openMachinePort<T>(name: string, index: number, vnetHdr: boolean, make: Make<T>): Promise<T> {
  const found = findPci(PTNETMAP_PCI_NETIF_ID);
  const folder = found[index];
  if (folder === undefined) {
    throw new SysError(`${name}: this machine has ${found.length} ptnet devices on its PCI bus`, errno.ENODEV);
  }
  const ptnet = openPci(folder);
  return open(name, { memdev: () => findMemdev(ptnet), ptnet: async () => ptnet }, vnetHdr, () => ptnet.close(), make);
}

/** The memdev whose region a ptnet device is in: a machine has one for each region. */
async function findMemdev(ptnet: PciDevice): Promise<PciDevice> {
  await enableBusMaster(ptnet);
  const wanted = await ptnet.read32(PTNET_IO.HOSTMEMID);
  for (const folder of findPci(PTNETMAP_PCI_DEVICE_ID)) {
    const memdev = openPassivePci(folder);
    if (((await memdev.read32(PTNET_MDEV_IO.MEMID)) & 0xffff) === wanted) return memdev;
    await memdev.close();
  }
  throw new SysError(`${ptnet.what}: this machine has no memdev of its region (${wanted})`, errno.ENODEV);
}

/** How to reach the two devices of a port; both are closed with it. */
interface Devices {
  readonly memdev: () => Promise<PciDevice>;
  readonly ptnet: () => Promise<PciDevice>;
}

async function open<T>(
  name: string,
  devices: Devices,
  vnetHdr: boolean,
  release: () => void | Promise<void>,
  make: Make<T>,
): Promise<T> {
  const undo: (() => void | Promise<void>)[] = [release];
  const unwind = async (): Promise<void> => {
    for (const step of undo.toReversed()) await step();
  };
  const connect = async (device: () => Promise<PciDevice>): Promise<PciDevice> => {
    const pci = await device();
    undo.push(() => pci.close());
    return pci;
  };
  try {
    const memdevPci = await connect(devices.memdev);
    const ptnetPci = await connect(devices.ptnet);
    const memdev = await Memdev.attach(memdevPci);
    undo.push(() => memdev.detach());
    const driver = await PtnetDriver.attach(ptnetPci, memdev, { vnetHdr });
    try {
      await driver.create();
      return make(name, driver, memdev, unwind);
    } catch (e) {
      await driver.detach().catch(() => undefined);
      throw e;
    }
  } catch (e) {
    await unwind().catch(() => undefined);
    throw e;
  }
}
