/**
 * The vfio-user protocol, server and client; knows nothing of netmap. A device implements `VfioUserDevice` and is served
 * by one `ServerConnection` per client; `VfioUserClient` is the other end. `DmaTable` keeps a client's memory for a device.
 */
export * from './client.ts';
export * from './dma.ts';
export * from './memory-transport.ts';
export * from './messages.ts';
export type { RegionInfo, RegionIoFd, SetIrqs, VfioUserDevice } from './requests.ts';
export * from './server.ts';
export * from './transport.ts';
