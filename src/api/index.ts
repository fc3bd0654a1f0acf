/** What an application imports: open a netmap port, use its rings (docs/api.md). */
export {
  type ControlReply,
  type DaemonStatus,
  NAF_FORCE_READ,
  NAF_FORCE_RECLAIM,
  NETMAP_MAX_FRAGS,
  netmap_if,
  netmap_slot,
  NR_DIR_RX,
  NR_DIR_TX,
  NR_DO_RX_POLL,
  NR_NO_TX_POLL,
  NR_TIMESTAMP,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  NS_TXMON,
  type Views,
} from '../abi/index.ts';
export {
  Ifnet,
  type IfnetOptions,
  MTU_MAX,
  MTU_MIN,
  parseEther,
  parseLoaderConf,
  vnetHdrTunable,
} from '../guest/index.ts';
export { defaultRunDir, SysError } from '../os/index.ts';
export { controlRequest, listDaemon, stopDaemon, valeCtl } from './control.ts';
export {
  type DeviceOptions,
  type OpenInterfaceOptions,
  type OpenPortOptions,
  openDevice,
  openInterface,
  openPort,
} from './open.ts';
export { NetmapPort, POLLIN, POLLOUT, type WaitOptions } from './port.ts';
export { PortSet } from './port-set.ts';
export { NetmapRing } from './ring.ts';
