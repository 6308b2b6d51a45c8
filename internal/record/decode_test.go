package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// holder and waiter are canonical entries to make bad values from.
const (
	holder     = `{"id":"a.1","mode":"X","token":"00000000000000000007","ttl":1000}`
	conversion = `"convert":{"id":"a.2","mode":"X","queued":"00000000000000000007"}`
	condWaiter = `{"id":"c.1","mode":"X","queued":"00000000000000000008","ttl":1000}`
	waiter     = `{"id":"b.1","mode":"S","queued":"00000000000000000008","ttl":1000}`
)

func lock(fields string) string { return `{"v":3,"kind":"lock"` + fields + `}` }

// refused are values that Decode must refuse, by their fault.
var refused = []struct{ why, value string }{
	{"empty", ``}, {"space", ` `}, {"null", `null`}, {"array", `[]`}, {"text", `"lock"`}, {"number", `1`}, {"no JSON", `lock`},
	{"empty object", `{}`}, {"no version", `{"kind":"lock"}`}, {"no kind", `{"v":3}`}, {"empty kind", `{"v":3,"kind":""}`},
	{"version 0", `{"v":0,"kind":"lock"}`}, {"negative version", `{"v":-1,"kind":"lock"}`}, {"fraction version", `{"v":3.0,"kind":"lock"}`},
	{"exponent version", `{"v":3e0,"kind":"lock"}`}, {"text version", `{"v":"1","kind":"lock"}`}, {"zero-led version", `{"v":01,"kind":"lock"}`},
	{"huge version", `{"v":99999999999999999999999,"kind":"lock"}`}, {"version null", `{"v":null,"kind":"lock"}`}, {"kind is a number", `{"v":3,"kind":1}`},
	{"version twice", `{"v":3,"v":3,"kind":"lock"}`}, {"kind twice", `{"v":3,"kind":"lock","kind":"lock"}`}, {"newer, then older version", `{"v":9,"v":3,"kind":"lock"}`},
	{"hold time of 0", lock(`,"hold_us":0`)}, {"negative hold time", lock(`,"hold_us":-1`)}, {"hold time beyond its limit", lock(`,"hold_us":9007199254740992`)},
	{"hold time is text", lock(`,"hold_us":"1"`)}, {"hold time twice", lock(`,"hold_us":1,"hold_us":1`)}, {"bad hold time before the kind", `{"hold_us":0,"v":3,"kind":"lock"}`},
	{"unknown field", lock(`,"extra":1`)}, {"unknown field first", `{"extra":{"a":[1,2,{}]},"v":3,"kind":"lock"}`},
	{"other case", `{"V":1,"kind":"lock"}`}, {"other case of a list", lock(`,"Holders":[]`)},
	{"cut", `{"v":3,"kind":"lock"`}, {"cut text", `{"v":3,"kind":"loc`}, {"cut escape", `{"v":3,"kind":"loc\`}, {"cut after an escape", `{"v":3,"kind":"lo\u0063k`}, {"cut \\u", `{"v":3,"kind":"loc\u00`},
	{"trailing comma", `{"v":3,"kind":"lock",}`}, {"no comma", `{"v":3 "kind":"lock"}`}, {"no colon", `{"v" 1,"kind":"lock"}`}, {"bare key", `{v:1,"kind":"lock"}`},
	{"data behind", lock(``) + `x`}, {"a second value", lock(``) + lock(``)}, {"NUL behind", lock(``) + "\x00"},
	{"holders is an object", lock(`,"holders":{}`)}, {"holders null", lock(`,"holders":null`)}, {"holders twice", lock(`,"holders":[],"holders":[]`)},
	{"holder is text", lock(`,"holders":["a.1"]`)}, {"trailing comma in holders", lock(`,"holders":[` + holder + `,]`)}, {"cut holders", lock(`,"holders":[` + holder)},
	{"holder without id", lock(`,"holders":[{"mode":"X","token":"00000000000000000007","ttl":1}]`)},
	{"holder without mode", lock(`,"holders":[{"id":"a.1","token":"00000000000000000007","ttl":1}]`)},
	{"holder without token", lock(`,"holders":[{"id":"a.1","mode":"X","ttl":1}]`)},
	{"holder without ttl", lock(`,"holders":[{"id":"a.1","mode":"X","token":"00000000000000000007"}]`)},
	{"holder as waiter", lock(`,"waiters":[` + holder + `]`)}, {"waiter as holder", lock(`,"holders":[` + waiter + `]`)},
	{"revoked waiter", lock(`,"waiters":[` + strings.Replace(waiter, `"ttl"`, `"revoked":true,"ttl"`, 1) + `]`)},
	{"unknown field of an entry", lock(`,"holders":[` + strings.Replace(holder, `"ttl"`, `"lease":"a","ttl"`, 1) + `]`)},
	{"field of an entry twice", lock(`,"holders":[` + strings.Replace(holder, `"ttl"`, `"mode":"X","ttl"`, 1) + `]`)},
	{"id twice", lock(`,"holders":[` + holder + `,` + holder + `]`)},
	{"id in both lists", lock(`,"holders":[` + holder + `],"waiters":[` + strings.Replace(waiter, "b.1", "a.1", 1) + `]`)},
	{"id in both lists, lists first", `{"holders":[` + holder + `],"waiters":[` + strings.Replace(waiter, "b.1", "a.1", 1) + `],"v":3,"kind":"lock"}`},
	{"bad holder, lists first", `{"holders":[{}],"v":3,"kind":"lock"}`}, {"bad waiter, lists first", `{"waiters":[{}],"v":3,"kind":"lock"}`},
	{"id without lease", bad("a.1", ".1")}, {"id without sequence", bad("a.1", "a")}, {"id with bad sequence", bad("a.1", "a.01")}, {"empty id", bad("a.1", "")},
	{"id with a wildcard", bad("a.1", "*.1")}, {"unknown mode", bad(`"X"`, `"Z"`)}, {"no mode", bad(`"X"`, `"None"`)}, {"lower case mode", bad(`"X"`, `"x"`)}, {"mode is a number", bad(`"X"`, `6`)},
	{"short token", bad("00000000000000000007", "7")}, {"long token", bad("00000000000000000007", "000000000000000000007")},
	{"token above 63 bits", bad("00000000000000000007", "09223372036854775808")}, {"schema of before tickets", `{"v":2,"kind":"lock"}`}, {"token with letters", bad("00000000000000000007", "0000000000000000000x")},
	{"negative token", bad("00000000000000000007", "-0000000000000000007")}, {"token is a number", bad(`"00000000000000000007"`, `7`)},
	{"ttl 0", bad("1000", "0")}, {"negative ttl", bad("1000", "-1")}, {"fraction ttl", bad("1000", "1.5")}, {"ttl above the clock", bad("1000", "9223372036855")}, {"ttl is text", bad("1000", `"1s"`)},
	{"negative since", bad("1000", `1000,"since":-1`)}, {"since is text", bad("1000", `1000,"since":"now"`)}, {"since above 2^53", bad("1000", `1000,"since":9007199254740992`)},
	{"converting waiter", lock(`,"waiters":[` + strings.Replace(waiter, `"ttl"`, conversion+`,"ttl"`, 1) + `]`)},
	{"converted waiter", lock(`,"waiters":[` + strings.Replace(waiter, `"ttl"`, `"converted":"b.2","ttl"`, 1) + `]`)},
	{"converting and converted", bad("1000", `1000,`+conversion+`,"converted":"a.3"`)}, {"converting twice", bad("1000", `1000,`+conversion+`,`+conversion)},
	{"convert is null", bad("1000", `1000,"convert":null`)}, {"convert is empty", bad("1000", `1000,"convert":{}`)}, {"cut convert", `{"v":3,"kind":"lock","holders":[{"convert":{"id":"a.2"`},
	{"convert without id", bad("1000", `1000,"convert":{"mode":"X","queued":"00000000000000000007"}`)}, {"convert without mode", bad("1000", `1000,"convert":{"id":"a.2","queued":"00000000000000000007"}`)},
	{"convert without queued", bad("1000", `1000,"convert":{"id":"a.2","mode":"X"}`)}, {"field of convert twice", bad("1000", `1000,`+strings.Replace(conversion, `"id"`, `"mode":"X","id"`, 1))},
	{"unknown field of convert", bad("1000", `1000,`+strings.Replace(conversion, `"id"`, `"since":1,"id"`, 1))}, {"convert to an unknown mode", bad("1000", `1000,`+strings.Replace(conversion, `"X"`, `"Z"`, 1))},
	{"convert with a bad id", bad("1000", `1000,`+strings.Replace(conversion, "a.2", "a", 1))}, {"convert under another lease", bad("1000", `1000,`+strings.Replace(conversion, "a.2", "b.2", 1))},
	{"converted under another lease", bad("1000", `1000,"converted":"b.2"`)}, {"converted is empty", bad("1000", `1000,"converted":""`)}, {"converted is a bad id", bad("1000", `1000,"converted":"a.x"`)},
	{"convert with a short queued", bad("1000", `1000,`+strings.Replace(conversion, "00000000000000000007", "7", 1))},
	{"revoked is a number", bad("1000", `1000,"revoked":1`)}, {"revoked null", bad("1000", `1000,"revoked":null`)}, {"revoked truely", bad("1000", `1000,"revoked":truely`)},
	{"meta is text", bad("1000", `1000,"meta":"x"`)}, {"meta value is a number", bad("1000", `1000,"meta":{"a":1}`)}, {"meta key twice", bad("1000", `1000,"meta":{"a":"1","\u0061":"1"}`)},
	{"owner is no UTF-8", bad("1000", "1000,\"owner\":\"\xff\"")}, {"owner is no UTF-8, escaped", bad("1000", "1000,\"owner\":\"\\n\xff\"")},
	{"half a character", bad("1000", `1000,"owner":"\ud83d"`)}, {"the other half", bad("1000", `1000,"owner":"\udd12"`)}, {"two first halves", bad("1000", `1000,"owner":"\ud83d\ud83d"`)},
	{"unknown escape", bad("1000", `1000,"owner":"\x41"`)}, {"bad hex", bad("1000", `1000,"owner":"\u00g0"`)},
	{"control character", bad("1000", "1000,\"owner\":\"a\nb\"")}, {"control character after an escape", bad("1000", "1000,\"owner\":\"\\t\nb\"")},
	{"kind is no UTF-8", "{\"v\":1,\"kind\":\"\xff\"}"}, {"other kind, cut", `{"v":3,"kind":"barrier","x":[`}, {"other kind, data behind", `{"v":3,"kind":"barrier"}}`},
	{"newer, cut", `{"v":9,"kind":"lock"`},
	{"condition: none", conds(`{}`)},
	{"condition: null", conds(`null`)},
	{"condition: a list", conds(`[]`)},
	{"condition: nobody", conds(`{"full":[]}`)},
	{"condition: no name", conds(`{"":[` + condWaiter + `]}`)},
	{"condition: long name", conds(`{"` + strings.Repeat("x", maxQueueName+1) + `":[` + condWaiter + `]}`)},
	{"condition: twice", conds(`{"full":[` + condWaiter + `],"full":[` + strings.Replace(condWaiter, "c.1", "d.1", 1) + `]}`)},
	{"condition: conds twice", conds(`{"full":[` + condWaiter + `]},"conds":{"full":[` + condWaiter + `]}`)},
	{"condition: id twice", conds(`{"full":[` + condWaiter + `],"none":[` + condWaiter + `]}`)},
	{"condition: id of a holder", conds(`{"full":[` + condWaiter + `]},"holders":[` + strings.Replace(holder, "a.1", "c.1", 1) + `]`)},
	{"condition: a holder", conds(`{"full":[` + holder + `]}`)},
	{"condition: a reader", conds(`{"full":[` + waiter + `]}`)},
	{"condition: signalled", conds(`{"full":[` + strings.Replace(condWaiter, `"ttl"`, `"signalled":"full","ttl"`, 1) + `]}`)},
	{"condition: a candidate", conds(`{"full":[` + strings.Replace(condWaiter, `"ttl"`, `"value":"","ttl"`, 1) + `]}`)},
	{"all without a signal", bad("1000", `1000,"all":true`)},
	{"signalled by nothing", bad("1000", `1000,"signalled":""`)},
	{"signal 0", bad("1000", `1000,"signal":0`)},
	{"signal of a reader", bad(`"X"`, `"S","signal":7`)},
	{"proclaimed nothing", bad("1000", `1000,"proclaimed":7`)},
	{"value and data", bad("1000", `1000,"value":"x","data":"eA=="`)},
	{"data is no base64", bad("1000", `1000,"data":"x"`)},
	{"permits of a lock", bad("1000", `1000,"permits":1`)},
	{"waiter with a last signal", `{"v":3,"kind":"lock","waiters":[` + strings.Replace(waiter, `"ttl"`, `"signal":7,"ttl"`, 1) + `]}`},
	{"waiter that proclaims", `{"v":3,"kind":"lock","waiters":[` + strings.Replace(waiter, `"ttl"`, `"value":"x","proclaimed":7,"ttl"`, 1) + `]}`},
	{"condition: of a semaphore", `{"v":3,"kind":"semaphore","size":1,"initial":1,"sized":"00000000000000000007","conds":{"full":[` + condWaiter + `]}}`},

	{"semaphore without size", `{"v":3,"kind":"semaphore","initial":1,"sized":"00000000000000000001"}`}, {"semaphore without anything", `{"v":3,"kind":"semaphore"}`},
	{"semaphore of 0", sem(`0`, ``)}, {"negative semaphore", sem(`-1`, ``)}, {"semaphore beyond 31 bits", sem(`2147483648`, ``)}, {"size twice", sem(`1`, `,"size":1`)},
	{"semaphore with a life of 0", sem(`1`, `,"life":0`)}, {"lock with a life", lock(`,"life":7`)}, {"lock with a size", lock(`,"size":1`)}, {"short sized", sem(`1`, `,"sized":"1"`)},
	{"entry without permits", sem(`1`, `,"waiters":[{"id":"b.1","queued":"00000000000000000008","ttl":1000}]`)}, {"0 permits", sem(`1`, permitsOf(`0`))},
	{"permits with a mode", sem(`1`, permitsOf(`1,"mode":"X"`))}, {"permits with a value", sem(`1`, permitsOf(`1,"value":"x"`))}, {"refused holder", sem(`1`, strings.Replace(strings.Replace(permitsOf(`1,"refused":true`), "waiters", "holders", 1), "queued", "token", 1))},

	{"latch without count", latched(``)}, {"latch of 0", latched(`,"count":0`)}, {"latch that is not open", latched(`,"open":false`)}, {"latch open with a count", latched(`,"open":true,"count":1`)},
	{"latch without initial", `{"v":3,"kind":"latch","count":1}`}, {"latch without anything", `{"v":3,"kind":"latch"}`}, {"latch with a size", latched(`,"count":1,"size":1`)}, {"fenced at 0", latched(`,"count":1,"fenced":0`)}, {"shut twice", latched(`,"count":1,"shut":1,"shut":1`)},
	{"latch with a holder", latched(`,"count":1,"holders":[{"id":"a.1","token":"00000000000000000007","ttl":1000}]`)}, {"open latch with a mark", latched(`,"open":true,"marks":{"a":[1,"1"]}`)},
	{"open latch with a waiter", latched(`,"open":true,"waiters":[{"id":"a.1","queued":"00000000000000000007","ttl":1000}]`)},
	{"mark of nobody", marked(`"":[1,"1"]`)}, {"mark twice", marked(`"a":[1,"1"],"a":[1,"2"]`)}, {"empty mark", marked(`"a":[]`)}, {"mark without sequences", marked(`"a":[1]`)}, {"mark with more", marked(`"a":[1,"1",2]`)}, {"mark with ttl 0", marked(`"a":[0,"1"]`)},
	{"mark is text", marked(`"a":"1"`)}, {"no sequence", marked(`"a":[1,""]`)}, {"sequences in no order", marked(`"a":[1,"3,1"]`)}, {"sequences side by side", marked(`"a":[1,"1,2"]`)}, {"ranges side by side", marked(`"a":[1,"1-2,3-4"]`)}, {"sequence twice", marked(`"a":[1,"1-2,2"]`)},
	{"range of one", marked(`"a":[1,"1-1"]`)}, {"range back", marked(`"a":[1,"2-1"]`)}, {"open range", marked(`"a":[1,"1-"]`)}, {"half a range", marked(`"a":[1,"-1"]`)}, {"range of three", marked(`"a":[1,"1-2-3"]`)}, {"zero-led sequence", marked(`"a":[1,"01"]`)}, {"sequence beyond 64 bits", marked(`"a":[1,"18446744073709551616"]`)},
	{"0 behind a range", marked(`"a":[1,"1,0"]`)}, {"space in a range", marked(`"a":[1,"1, 3"]`)},

	{"result of nobody", onceOf(`,"value":"x"`)}, {"no result by somebody", onceOf(`,"by":"a.1"`)}, {"result by a bad id", onceOf(`,"value":"x","by":"a"`)}, {"two results", onceOf(`,"value":"x","data":"eA==","by":"a.1"`)}, {"result that is no base64", onceOf(`,"data":"x","by":"a.1"`)},
	{"result beside who runs", onceOf(`,"value":"x","by":"a.1","holders":[{"id":"a.1","token":"00000000000000000007","ttl":1000}]`)}, {"result and a waiter", onceOf(`,"value":"x","by":"a.1","waiters":[{"id":"a.1","queued":"00000000000000000007","ttl":1000}]`)},
	{"two that run", onceOf(`,"holders":[{"id":"a.1","token":"00000000000000000007","ttl":1000},{"id":"a.2","token":"00000000000000000007","ttl":1000}]`)}, {"runs with a mode", onceOf(`,"holders":[` + holder + `]`)},
}

func sem(size, fields string) string {
	return `{"v":3,"kind":"semaphore","size":` + size + `,"initial":1,"sized":"00000000000000000001"` + fields + `}`
}

// permitsOf are the fields of a semaphore with one waiter.
func permitsOf(permits string) string {
	return `,"waiters":[{"id":"b.1","queued":"00000000000000000008","ttl":1000,"permits":` + permits + `}]`
}

func latched(fields string) string { return `{"v":3,"kind":"latch","initial":3` + fields + `}` }
func marked(marks string) string   { return latched(`,"count":1,"marks":{` + marks + `}`) }
func onceOf(fields string) string  { return `{"v":3,"kind":"once"` + fields + `}` }

// bad is a record with one holder, in which something is replaced.
func bad(old, new string) string {
	return lock(`,"holders":[` + strings.Replace(holder, old, new, 1) + `]`)
}

// conds is a record with something as its conditions.
func conds(value string) string { return `{"v":3,"kind":"lock","conds":` + value + `}` }

func TestDecodeRefuses(t *testing.T) {
	for _, c := range refused {
		rec, err := Decode([]byte(c.value))
		var detail *MalformedError
		if rec != nil || !errors.Is(err, ErrMalformed) || !errors.As(err, &detail) || errors.Is(err, ErrNewerSchema) {
			t.Errorf("%s: %s\ndecoded as %+v, %v", c.why, c.value, rec, err)
			continue
		}
		if detail.Reason == "" || detail.Offset < 0 || detail.Offset > len(c.value) {
			t.Errorf("%s: %+v", c.why, detail)
		}
	}
	if _, err := Decode(nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("nil: %v", err)
	}
}

// The offset must help a person who looks at the value.
func TestDecodeSaysWhere(t *testing.T) {
	value := bad(`"ttl"`, `"lease":"a","ttl"`)
	_, err := Decode([]byte(value))
	var detail *MalformedError
	if !errors.As(err, &detail) || detail.Offset != strings.Index(value, `"lease"`) || err.Error() != fmt.Sprintf("record: malformed at byte %d: unknown field", detail.Offset) {
		t.Errorf("%v", err)
	}
}

func TestDecodeTakes(t *testing.T) {
	want, err := Decode([]byte(lock(`,"holders":[` + holder + `],"waiters":[` + waiter + `]`)))
	if err != nil {
		t.Fatal(err)
	}
	for why, value := range map[string]string{
		"white space":      " {\n\t\"v\" : 3 ,\r\n\"kind\" : \"lock\" , \"holders\" : [ " + strings.ReplaceAll(holder, ":", " : ") + " ] , \"waiters\" : [ " + waiter + "\n] }\n",
		"another order":    `{"waiters":[` + waiter + `],"holders":[` + holder + `],"kind":"lock","v":3}`,
		"kind at the end":  `{"v":3,"holders":[` + holder + `],"waiters":[` + waiter + `],"kind":"lock"}`,
		"escapes":          `{"v":3,"kind":"l\u006fck","\u0068olders":[` + strings.Replace(holder, "a.1", `\u0061.1`, 1) + `],"waiters":[` + waiter + `]}`,
		"fields unordered": lock(`,"holders":[{"ttl":1000,"token":"00000000000000000007","mode":"X","id":"a.1"}],"waiters":[` + waiter + `]`),
		"empty options":    lock(`,"holders":[` + strings.Replace(holder, `1000`, `1000,"owner":"","revoked":false,"meta":{}`, 1) + `],"waiters":[` + waiter + `]`),
	} {
		if got, err := Decode([]byte(value)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", why, got, err)
		}
	}
	rec, err := Decode([]byte(bad("1000", `1000,"owner":"\ud83d\udd12\u00E4\/\b\f\n\r\t\"\\"`)))
	if err != nil || rec.Holders[0].Owner != "🔒ä/\b\f\n\r\t\"\\" {
		t.Errorf("%+v, %v", rec, err)
	}
	rec, err = Decode([]byte(bad("1000", "9223372036854")))
	if err != nil || rec.Holders[0].TTL != maxTTL || maxTTL < 292*365*24*time.Hour {
		t.Errorf("%+v, %v", rec, err)
	}
}

// A record of a newer version or another kind is reported as that, not as malformed.
func TestDecodeNamesWhatItDoesNotKnow(t *testing.T) {
	for _, value := range []string{`{"v":9}`, `{"v":9,"kind":"lock","holders":7}`, `{"v":9,"kind":{"is":"lock"}}`, `{"shards":[1,[2]],"v":9}`} {
		_, err := Decode([]byte(value))
		var schema *SchemaError
		if !errors.Is(err, ErrNewerSchema) || !errors.As(err, &schema) || schema.Version != 9 || errors.Is(err, ErrMalformed) ||
			!strings.Contains(err.Error(), "version 9") {
			t.Errorf("%s: %v", value, err)
		}
	}
	for _, value := range []string{`{"v":3,"kind":"turnstile"}`, `{"permits":{"n":3},"v":3,"holders":{"a":1},"kind":"turnstile","waiters":[{}]}`} {
		rec, err := Decode([]byte(value))
		var schema *SchemaError
		if rec != nil || !errors.Is(err, ErrNewerSchema) || !errors.As(err, &schema) || schema.Kind != "turnstile" || errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", value, rec, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range refused {
		f.Add([]byte(c.value))
	}
	f.Add([]byte(fullJSON))
	f.Add([]byte(`{"v":9,"kind":"lock"}`))
	f.Add([]byte(long("#La/30000.15X@900:2+1790000000000")))
	f.Add([]byte(`{"v":3,"kind":"barrier","life":10,"holders":[{"id":"E.42","token":"00000000000000000012","ttl":30000,"gen":3,"acts":true}],` +
		`"waiters":[{"id":"A.1","queued":"00000000000000000011","ttl":30000,"gen":3},{"id":"A.9","queued":"00000000000000000012","ttl":30000,"gen":4,"acts":true}],` +
		`"parties":2,"gen":4,"leases":["A","E","B"],"acting":{"gen":3,"ids":"0.1 1.42"},"ended":[{"gen":1,"broken":"died","by":"B","ids":"2.1"},{"gen":2,"ids":"2.3-4"}]}`))
	f.Add([]byte(`{"v":3,"kind":"gate","life":10,"holders":[{"id":"A.1","token":"00000000000000000012","ttl":30000,"leaving":7}],"waiters":[{"id":"B.1","queued":"00000000000000000012","ttl":1}],"parties":1,"gen":3,"open":true}`))
	f.Add([]byte(conds(`{"full":[` + condWaiter + `]}`)))
	f.Add([]byte(bad("1000", `1000,"data":"/w==","proclaimed":3,"signalled":"full","all":true,"signal":7`)))
	f.Add([]byte(sem(`3`, `,"resized":true,"life":7`+permitsOf(`3,"refused":true`))))
	f.Add([]byte(latched(`,"life":7,"count":1,"fenced":8,"shut":9,"marks":{"b":[1000,"1-3,5"],"a":[300,"18446744073709551614-18446744073709551615"]}`)))
	f.Add([]byte(latched(`,"open":true`)))
	f.Add([]byte(onceOf(`,"data":"/w==","by":"a.1"`)))
	f.Add([]byte(`{"waiters":[` + waiter + `],"holders":[` + holder + `],"kind":"lock","v":3}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		kept := bytes.Clone(value)
		rec, err := Decode(value)
		if !bytes.Equal(value, kept) {
			t.Fatal("the value was modified")
		}
		if err != nil {
			if rec != nil || errors.Is(err, ErrMalformed) == errors.Is(err, ErrNewerSchema) {
				t.Fatalf("%+v, %v", rec, err)
			}
			return
		}
		if !json.Valid(value) {
			t.Fatalf("took what is no JSON: %q", value)
		}
		for i := range value {
			value[i] = '!' // a record must not keep parts of the buffer it was read from
		}
		stored := rec.Append(nil)
		again, err := Decode(stored)
		if err != nil || !reflect.DeepEqual(again, rec) {
			t.Fatalf("%q\nstored as %s\ncame back as %+v, %v", kept, stored, again, err)
		}
		if twice := again.Append(nil); !bytes.Equal(twice, stored) {
			t.Fatalf("not canonical:\n%s\n%s", stored, twice)
		}
		if len(stored) > sizeBound(rec) {
			t.Fatalf("%d bytes, bound %d: %s", len(stored), sizeBound(rec), stored)
		}
	})
}
