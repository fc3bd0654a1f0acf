/** Port names: what is taken, and where errors point. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  NR_EXCLUSIVE,
  NR_MONITOR_RX,
  NR_MONITOR_TX,
  NR_REG_ALL_NIC,
  NR_REG_NIC_SW,
  NR_REG_ONE_NIC,
  NR_REG_ONE_SW,
  NR_REG_SW,
  NR_RX_RINGS_ONLY,
  NR_TX_RINGS_ONLY,
  NR_ZCOPY_MON,
} from '../../../src/abi/index.ts';
import { parsePortName, parseRingConfig, PortNameError } from '../../../src/ports/index.ts';

test('each kind of port by name', () => {
  const all = { mode: NR_REG_ALL_NIC, ringId: 0, flags: 0, conf: {} };
  const cases = {
    'vale0:a': { kind: 'vale', bridge: 'vale0', port: 'a' },
    'vale:a.b_1': { kind: 'vale', bridge: 'vale', port: 'a.b_1' },
    'netmap:eth0.5': { kind: 'netmap', port: 'eth0.5' },
    'null:n': { kind: 'null', port: 'n' },
    'netmap:x{id': { kind: 'pipe', pipe: 'netmap:x{id', base: 'netmap:x', id: 'id', end: 'master' },
    'netmap:x}3': { kind: 'pipe', pipe: 'netmap:x{3', base: 'netmap:x', id: '3', end: 'slave' },
    'vale0:a{1': { kind: 'pipe', pipe: 'vale0:a{1', base: 'vale0:a', id: '1', end: 'master' },
  };
  for (const [text, expected] of Object.entries(cases)) {
    assert.deepEqual(parsePortName(text), { ...expected, ...all, text, name: text });
  }
});

test('ring selection, flags, region and options', () => {
  const parse = (suffix: string) => {
    const { kind, bridge, port, text, name, ...rest } = parsePortName(`vale1:p${suffix}`) as ReturnType<
      typeof parsePortName
    > & { bridge: string; port: string };
    assert.deepEqual([kind, bridge, port, text, name], ['vale', 'vale1', 'p', `vale1:p${suffix}`, 'vale1:p']);
    return rest;
  };
  const none = { mode: NR_REG_ALL_NIC, ringId: 0, flags: 0, conf: {} };
  assert.deepEqual(parse('-3'), { ...none, mode: NR_REG_ONE_NIC, ringId: 3 });
  assert.deepEqual(parse('^'), { ...none, mode: NR_REG_SW });
  assert.deepEqual(parse('^1'), { ...none, mode: NR_REG_ONE_SW, ringId: 1 });
  assert.deepEqual(parse('*/x'), { ...none, mode: NR_REG_NIC_SW, flags: NR_EXCLUSIVE });
  assert.deepEqual(parse('/xz'), { ...none, flags: NR_EXCLUSIVE | NR_ZCOPY_MON });
  assert.deepEqual(parse('-1/t/r@5'), {
    ...none,
    mode: NR_REG_ONE_NIC,
    ringId: 1,
    flags: NR_MONITOR_TX | NR_MONITOR_RX,
    memId: '5',
  });
  assert.deepEqual(parse('/R'), { ...none, flags: NR_RX_RINGS_ONLY });
  assert.deepEqual(parse('@lab-1/T'), { ...none, flags: NR_TX_RINGS_ONLY, memId: 'lab-1' });
  assert.deepEqual(parse('@conf:rings=2,tx-slots=512,rx_slots=0,slots=64'), {
    ...none,
    conf: { txSlots: 512, txRings: 2, rxRings: 2 },
  });
  assert.deepEqual(parse('@5@conf:slots=64'), { ...none, memId: '5', conf: { txSlots: 64, rxSlots: 64 } });
  assert.deepEqual(parse('@share=netmap:x{1@conf:rings=2'), {
    ...none,
    share: 'netmap:x{1',
    conf: { txRings: 2, rxRings: 2 },
  });
  assert.equal(parsePortName('netmap:x}1-0/x@7').name, 'netmap:x}1');
});

test('errors point at the character', () => {
  const cases: [string, number, RegExp][] = [
    ['', 0, /begins with none of/],
    ['eth0', 0, /begins with none of/],
    ['vale0', 5, /":" and the name/],
    ['va-le0:a', 0, /begins with none/],
    ['vale0x!:a', 6, /switch name/],
    ['netmap5:a', 6, /":" has to follow "netmap"/],
    ['vale0:', 6, /name of the port is missing/],
    ['vale0:a b', 7, /port name has/],
    ['vale0:a-b', 8, /the ring is missing/],
    ['vale0:a-5000', 8, /from 0 to 4094/],
    ['vale0:a-1x', 9, /are expected here/],
    ['netmap:x{', 9, /name of the pipe is missing/],
    ['netmap:x{a}b', 10, /pipe's name/],
    ['null:a{1', 6, /no pipes/],
    ['vale0:a/', 8, /a flag is expected/],
    ['vale0:a/xq', 9, /a flag is expected/],
    ['vale0:a@', 8, /region or an option/],
    ['vale0:a@0', 8, /from 1 to 65535/],
    ['vale0:a@1@2', 9, /@1 already/],
    ['vale0:a@conf', 12, /./],
    ['vale0:a@conf:ring=1', 13, /a key is expected/],
    ['vale0:a@conf:rings=1,rings=2', 21, /twice/],
    ['vale0:a@conf:host-rings=1', 13, /no host rings/],
    ['vale0:a@conf:rings', 18, /"="/],
    ['vale0:a@offset:initial=2', 7, /no way to agree/],
    ['vale0:a@extmem=file', 7, /daemon's memory/],
    ['vale0:a@what=1', 8, /unknown option/],
    ['vale0:a@share=eth0', 14, /wants a port name/],
    [`vale0:${'a'.repeat(58)}`, 63, /longer than 63/],
  ];
  for (const [text, at, why] of cases) {
    if (text === 'vale0:a@conf') continue; // "conf" without ":" is a region of that name
    assert.throws(
      () => parsePortName(text),
      (e) => {
        assert.ok(e instanceof PortNameError);
        assert.equal(e.at, at, `${text}: ${e.message}`);
        assert.match(e.message, why);
        const [, line, mark] = e.message.split('\n');
        assert.equal(line, `  ${text}`);
        assert.equal(mark!.indexOf('^'), at + 2);
        return true;
      },
    );
  }
  assert.equal(parsePortName('vale0:a@conf').memId, 'conf');
});

test('-C: slots and rings as pkt-gen and vale-ctl take them', () => {
  assert.deepEqual(parseRingConfig('512'), { txSlots: 512, rxSlots: 512 });
  assert.deepEqual(parseRingConfig('512,256'), { txSlots: 512, rxSlots: 256 });
  assert.deepEqual(parseRingConfig('512,256,4'), { txSlots: 512, rxSlots: 256, txRings: 4, rxRings: 4 });
  assert.deepEqual(parseRingConfig('0,256,4,2'), { rxSlots: 256, txRings: 4, rxRings: 2 });
  for (const [text, at] of [
    ['', 0],
    ['x', 0],
    ['1,', 2],
    ['1;2', 1],
    ['1,2,3,4,5', 7],
  ] as const) {
    assert.throws(
      () => parseRingConfig(text),
      (e) => e instanceof PortNameError && e.at === at,
    );
  }
});
