//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// field is a line of a table in docs/output.md.
type field struct {
	kind   string
	absent bool // it can be

	seen, missed bool // there was an object with it, and one without
}

// table is what docs/output.md says of one shape, by path, and what was seen of it.
type table map[string]*field

var cell = regexp.MustCompile("`([^`]+)`")

// outputTable reads the table under a heading.
func outputTable(t *testing.T, doc, heading string) table {
	t.Helper()
	_, section, ok := strings.Cut(doc, "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, rows, found := strings.Cut(section, "\n| field | type | absent | meaning |\n|---|---|---|---|\n")
	if !ok || !found {
		t.Fatalf("no table under %q", heading)
	}
	table := table{}
	for row := range strings.Lines(rows) {
		if !strings.HasPrefix(row, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), "|")
		if len(cells) != 4 || len(cell.FindAllString(cells[1], -1)) != 1 || strings.TrimSpace(cells[3]) == "" {
			t.Fatalf("%s: %d cells, want paths, one type, when it is absent, the meaning: %s", heading, len(cells), row)
		}
		for _, path := range cell.FindAllStringSubmatch(cells[0], -1) {
			if table[path[1]] != nil {
				t.Errorf("%s: %s is there twice", heading, path[1])
			}
			table[path[1]] = &field{kind: cell.FindStringSubmatch(cells[1])[1], absent: strings.TrimSpace(cells[2]) != ""}
		}
	}
	return table
}

// outputDoc reads docs/output.md.
func outputDoc(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/output.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// with adds the fields of another table, which see what this one sees.
func (tb table) with(other table) table {
	maps.Copy(tb, other)
	return tb
}

// reads notes what a JSON text has, and returns what the table does not say of it.
func (tb table) reads(text string) (wrong []string) {
	v, err := decode(text)
	if err != nil {
		return []string{fmt.Sprintf("%v in %q", err, text)}
	}
	object, ok := v.(map[string]any)
	if !ok {
		return []string{"no object: " + text}
	}
	return tb.object("", object)
}

// decode reads one JSON value, and nothing after it.
func decode(text string) (v any, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err = d.Decode(&v); err == nil && d.More() {
		err = fmt.Errorf("more than one value")
	}
	return v, err
}

// object looks at the fields of the object whose paths begin with prefix.
func (tb table) object(prefix string, v map[string]any) (wrong []string) {
	for path, f := range tb {
		name, inside := strings.CutPrefix(path, prefix)
		if _, there := v[name]; !inside || there || strings.ContainsAny(name, ".[") {
			continue
		}
		if f.missed = true; !f.absent {
			wrong = append(wrong, path+" is absent")
		}
	}
	for name, v := range v {
		path := prefix + name
		f := tb[path]
		if f == nil {
			wrong = append(wrong, path+" is not documented")
			continue
		}
		f.seen = true
		if why := mismatch(f.kind, name, v); why != "" {
			wrong = append(wrong, fmt.Sprintf("%s is %v, %s", path, v, why))
			continue
		}
		switch v := v.(type) {
		case map[string]any:
			if f.kind != "texts" {
				wrong = append(wrong, tb.object(path+".", v)...)
			}
		case []any:
			for _, e := range v {
				if e, ok := e.(map[string]any); ok {
					wrong = append(wrong, tb.object(likewise(path+"[]."), e)...)
				}
			}
		}
	}
	return wrong
}

// likewise is where the fields are documented of what looks the same in several places.
func likewise(prefix string) string {
	return strings.Replace(prefix, "conditions[].waiters[].", "waiters[].", 1)
}

// mismatch says why a value is not of the type, or its name is not one for it.
func mismatch(kind, name string, v any) string {
	ok := false
	switch v := v.(type) {
	case bool:
		ok = kind == "boolean"
	case json.Number:
		_, err := v.Int64()
		ok = err == nil && (kind == "integer" || kind == "duration")
	case string:
		_, notTime := time.Parse(time.RFC3339Nano, v)
		_, notLength := time.ParseDuration(v)
		switch {
		case (notTime == nil) != (kind == "time"):
			return "a time in RFC 3339 is a 'time', and nothing else is"
		case notLength == nil:
			return "a length of time is a number of nanoseconds, a 'duration'"
		}
		ok = kind == "string" || kind == "time"
	case map[string]any:
		ok = kind == "object" || kind == "object or null"
		if kind == "texts" {
			ok = true
			for _, text := range v {
				_, isText := text.(string)
				ok = ok && isText
			}
		}
	case []any:
		ok = kind == "array" || kind == "list"
		for _, e := range v {
			_, isObject := e.(map[string]any)
			_, isText := e.(string)
			ok = ok && isObject == (kind == "array") && isText == (kind == "list")
		}
	case nil:
		ok = kind == "object or null"
	}
	switch {
	case !ok:
		return fmt.Sprintf("a %T, and documented as '%s'", v, kind)
	case strings.HasSuffix(name, "_ns") != (kind == "duration"):
		return "a 'duration' has a name that ends in _ns, and nothing else has"
	}
	return ""
}

// unproven returns what the table says and nothing that was read has shown.
func (tb table) unproven() (wrong []string) {
	for _, path := range slices.Sorted(maps.Keys(tb)) {
		f := tb[path]
		if !f.seen {
			wrong = append(wrong, path+" is documented, and no command printed it")
		}
		if f.absent && !f.missed {
			wrong = append(wrong, path+" is said to be absent at times, and never was")
		}
	}
	return wrong
}

// holds compares the table with a struct. Commands print what the tests bring about;
// that a rare field is left out of the table shows here alone. Never are the paths
// that the struct has and no command prints.
func (tb table) holds(v any, never ...string) (wrong []string) {
	fields := table{}
	fields.add("", reflect.TypeOf(v))
	for path := range tb {
		if fields[path] == nil {
			wrong = append(wrong, path+" is documented, and the struct has none")
		}
	}
	for path, f := range fields {
		documented := tb[path]
		switch {
		case slices.ContainsFunc(never, func(n string) bool {
			return n == path || strings.HasSuffix(n, "*") && strings.HasPrefix(path, n[:len(n)-1])
		}):
			if documented != nil {
				wrong = append(wrong, path+" is documented, and said never to appear")
			}
		case documented == nil:
			wrong = append(wrong, path+" of the struct is not documented")
		case documented.kind != f.kind && (f.kind != "string" || documented.kind != "time"):
			wrong = append(wrong, fmt.Sprintf("%s is documented as '%s', and is '%s'", path, documented.kind, f.kind))
		case documented.absent && !f.absent:
			wrong = append(wrong, path+" is never absent")
		}
	}
	return wrong
}

// add adds the fields of a struct by their JSON names.
func (tb table) add(prefix string, s reflect.Type) {
	for sf := range s.Fields() {
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if sf.Anonymous && name == "" {
			tb.add(prefix, sf.Type)
			continue
		}
		if name == "-" || !sf.IsExported() {
			continue
		}
		f := &field{kind: "object", absent: strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")}
		tb[prefix+name] = f
		switch typ := sf.Type; {
		case typ == reflect.TypeFor[time.Time]():
			f.kind = "time"
		case typ == reflect.TypeFor[time.Duration]():
			f.kind = "duration"
		case strings.Contains(options, "string"), typ.Kind() == reflect.String, typ == reflect.TypeFor[*string](), typ == reflect.TypeFor[[]byte]():
			f.kind = "string"
		case typ.Kind() == reflect.Bool:
			f.kind = "boolean"
		case typ.Kind() == reflect.Map:
			f.kind = "texts"
		case typ.Kind() == reflect.Slice:
			if f.kind = "list"; typ.Elem().Kind() == reflect.Struct {
				f.kind = "array"
				if inner := prefix + name + "[]."; inner == likewise(inner) {
					tb.add(inner, typ.Elem())
				}
			}
		case typ.Kind() == reflect.Pointer:
			f.kind = "object or null"
			tb.add(prefix+name+".", typ.Elem())
		case typ.Kind() == reflect.Struct:
			tb.add(prefix+name+".", typ)
		default:
			f.kind = "integer"
		}
	}
}

func TestOutputTablesCanFail(t *testing.T) {
	t.Parallel()
	const doc = "# Doc\n\n## x\n\ntext\n\n| field | type | absent | meaning |\n|---|---|---|---|\n| `a`, `b` | `integer` | | m |\n" +
		"| `c` | `array` | at times | m |\n| `c[].at` | `time` | | m |\n| `d_ns` | `duration` | none | `m` |\n\n## y\n\n| `z` | `string` | | m |\n"
	for text, want := range map[string]string{
		`{"a":1,"b":2}`: "",
		`{"a":1,"b":2,"c":[{"at":"2026-01-02T03:04:05Z"}],"d_ns":5}`: "",
		`{"a":1}`:                                "b is absent",
		`{"a":1,"b":2,"z":""}`:                   "z is not documented",
		`{"a":1,"b":2,"c":null}`:                 "documented as 'array'",
		`{"a":1,"b":2,"c":[7]}`:                  "documented as 'array'",
		`{"a":1,"b":2,"c":[{}]}`:                 "c[].at is absent",
		`{"a":1,"b":2,"c":[{"at":"yesterday"}]}`: "a time in RFC 3339",
		`{"a":1,"b":2,"d_ns":"1s"}`:              "a length of time is",
		`{"a":1,"b":2,"d_ns":1.5}`:               "documented as 'duration'",
		`{"a":true,"b":2}`:                       "documented as 'integer'",
		`[]`:                                     "no object",
		`{} {}`:                                  "more than one",
	} {
		tb := outputTable(t, doc, "x")
		if got := strings.Join(tb.reads(text), "; "); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	tb := outputTable(t, doc, "x")
	tb.reads(`{"a":1,"b":2,"c":[]}`)
	if got := strings.Join(tb.unproven(), "; "); got != "c is said to be absent at times, and never was; "+
		"c[].at is documented, and no command printed it; d_ns is documented, and no command printed it" {
		t.Error(got)
	}
	type part struct {
		At time.Time `json:"at"`
	}
	type rest struct {
		C    []part        `json:"c,omitempty"`
		D    time.Duration `json:"d_ns,omitempty"`
		Hide int           `json:"-"`
	}
	type whole struct {
		A int    `json:"a"`
		B uint64 `json:"b"`
		rest
	}
	for _, tt := range []struct {
		v     any
		never string
		want  string
	}{
		{whole{}, "", ""},
		{struct {
			whole
			E string `json:"e,omitempty"`
		}{}, "", "e of the struct is not documented"},
		{struct {
			whole
			E string `json:"e,omitempty"`
		}{}, "e", ""},
		{whole{}, "a", "a is documented, and said never to appear"},
		{struct {
			A string `json:"a"`
			B int    `json:"b"`
			rest
		}{}, "", "a is documented as 'integer', and is 'string'"},
		{struct {
			A int `json:"a"`
			rest
		}{}, "", "b is documented, and the struct has none"},
		{struct {
			A, B int           `json:"-"`
			X    int           `json:"a"`
			Y    int           `json:"b"`
			C    []part        `json:"c"`
			D    time.Duration `json:"d_ns,omitempty"`
		}{}, "", "c is never absent"},
	} {
		if got := strings.Join(outputTable(t, doc, "x").holds(tt.v, tt.never), "; "); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
