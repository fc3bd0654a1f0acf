/** The tunable and the words of ptnet up: what is read, and what is refused. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parseAddress, parseWords } from '../../../src/cli/ifconfig-words.ts';
import { parseLoaderConf, vnetHdrTunable } from '../../../src/guest/index.ts';

describe('dev.netmap.ptnet_vnet_hdr', () => {
  const conf = (value: string): ReadonlyMap<string, string> =>
    parseLoaderConf(`# comment\n\nkern.hz=100\ndev.netmap.ptnet_vnet_hdr="${value}" # off\n`, 'loader.conf');

  it('is 1 if nobody says anything', () => {
    assert.equal(vnetHdrTunable({}), true);
    assert.equal(vnetHdrTunable({ loaderConf: parseLoaderConf('', 'x'), env: { PTNET_VNET_HDR: '' } }), true);
  });

  it('is found in the flag, then the environment, then loader.conf', () => {
    assert.equal(vnetHdrTunable({ loaderConf: conf('0') }), false);
    assert.equal(vnetHdrTunable({ loaderConf: conf('0'), env: { PTNET_VNET_HDR: '1' } }), true);
    assert.equal(vnetHdrTunable({ loaderConf: conf('1'), env: { PTNET_VNET_HDR: '1' }, flag: '0' }), false);
  });

  it('refuses values other than 0 and 1, naming the source', () => {
    assert.throws(() => vnetHdrTunable({ flag: 'yes' }), /--vnet-hdr is "yes"/);
    assert.throws(() => vnetHdrTunable({ env: { PTNET_VNET_HDR: '2' } }), /PTNET_VNET_HDR is "2"/);
    assert.throws(() => vnetHdrTunable({ loaderConf: conf('-1') }), /dev\.netmap\.ptnet_vnet_hdr is "-1"/);
  });

  it('reads loader.conf: quotes or none, comments, the last line wins, faults with their line', () => {
    const got = parseLoaderConf('a.b="1 2"\n  c=3\t# x\na.b=4\ne=""\n', 'f');
    assert.deepEqual(
      [...got],
      [
        ['a.b', '4'],
        ['c', '3'],
        ['e', ''],
      ],
    );
    assert.throws(() => parseLoaderConf('a=1\nnonsense\n', 'boot/loader.conf'), /boot\/loader\.conf:2: "nonsense"/);
    assert.throws(() => parseLoaderConf('a="1\n', 'f'), /f:1/);
  });
});

describe('words of ptnet up and ptnet ifconfig', () => {
  it('are those of ifconfig(8)', () => {
    const words = 'inet 10.0.0.1/24 inet6 fd00::1/64 mtu 9000 ether 02:00:00:00:00:07 -tso lro -promisc up'.split(' ');
    assert.deepEqual(parseWords(words), {
      inet: { address: Uint8Array.of(10, 0, 0, 1), prefix: 24 },
      inet6: [{ address: Uint8Array.of(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), prefix: 64 }],
      mtu: 9000,
      ether: Uint8Array.of(2, 0, 0, 0, 0, 7),
      tso: false,
      lro: true,
      promisc: false,
      up: true,
    });
  });

  it('know every way to write an IPv6 address', () => {
    const bytes = (text: string): string => Buffer.from(parseAddress(text, 6).address).toString('hex');
    assert.equal(bytes('::'), '0'.repeat(32));
    assert.equal(bytes('1:2:3:4:5:6:7:8'), '00010002000300040005000600070008');
    assert.equal(bytes('fe80::1:2'), 'fe800000000000000000000000010002');
    assert.equal(bytes('::ffff:10.1.2.3'), '00000000000000000000ffff0a010203');
    assert.equal(bytes('1::'), '00010000000000000000000000000000');
  });

  it('are refused with what is possible', () => {
    for (const [words, message] of [
      ['mtu 9001', /68 to 9000/],
      ['mtu', /needs a value/],
      ['inet 10.0.0.256/24', /no IPv4 address/],
      ['inet 10.0.0.1/33', /no IPv4 address/],
      ['inet6 10.0.0.1/24', /no IPv6 address/],
      ['ether 02:00', /no Ethernet address/],
      ['-gso', /"-gso" is unknown; possible/],
    ] as const) {
      assert.throws(() => parseWords(words.split(' ')), message);
    }
  });
});
