/** A port of the api on a fake host (tests/unit/guest/fake-host.ts): what the tests of ports share. */
import { NetmapPort } from '../../../src/api/port.ts';
import { PtnetDriver } from '../../../src/guest/driver.ts';
import { Memdev } from '../../../src/guest/memdev.ts';
import { closeFd, socketPair } from '../../../src/os/index.ts';
import type { FakeConfig } from '../guest/fake-host.ts';
import { FakeHost } from '../guest/fake-host.ts';

/** A port on a fake host; `socket` is the host's end of what the port takes for its connection. */
export async function openFake(
  config: FakeConfig & { readonly pollMs?: number } = {},
): Promise<{ host: FakeHost; port: NetmapPort; socket: number }> {
  const host = new FakeHost(config);
  if (config.pollMs !== undefined) host.ptnet.pollMs = config.pollMs;
  const [guestEnd, socket] = socketPair();
  host.ptnet.hangupFd = guestEnd;
  const memdev = await Memdev.attach(host.memdev);
  const driver = await PtnetDriver.attach(host.ptnet, memdev);
  await driver.create();
  const port = new NetmapPort('fake0:x', driver, memdev, async () => {
    memdev.detach();
    closeFd(guestEnd);
    host.close();
  });
  return { host, port, socket };
}
