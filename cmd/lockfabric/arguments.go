package main

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// textMappers read texts as they were given. Those of kong go through JSON, which
// replaces every byte that is no UTF-8: the command under run would get the name of
// another file, and two names of locks would become one. Durations and numbers are read
// here to say what one looks like.
func textMappers() []kong.Option {
	text := func(decode func(text string, target reflect.Value) error) kong.Mapper {
		return kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
			if ctx.Scan.Peek().IsEOL() {
				return errors.New("give a value")
			}
			token, err := ctx.Scan.PopValue("string")
			if err != nil { // the next word is a flag
				return errors.New("give a value, after a = if it begins with a dash")
			}
			return decode(fmt.Sprint(token.Value), target)
		})
	}
	return []kong.Option{
		kong.KindMapper(reflect.String, text(func(text string, target reflect.Value) error {
			target.SetString(text)
			return nil
		})),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), text(func(text string, target reflect.Value) error {
			d, err := time.ParseDuration(text)
			if err != nil {
				return fmt.Errorf("%q is no duration: give one like 30s, 5m or 1h30m", text)
			}
			target.SetInt(int64(d))
			return nil
		})),
		kong.KindMapper(reflect.Int, text(func(text string, target reflect.Value) error {
			n, err := strconv.Atoi(text)
			if err != nil {
				return fmt.Errorf("%q is no whole number", text)
			}
			target.SetInt(int64(n))
			return nil
		})),
		kong.NamedMapper("path", text(func(text string, target reflect.Value) error {
			if text != "" { // which is not the present directory
				text = kong.ExpandPath(text)
			}
			target.SetString(text)
			return nil
		})),
		kong.TypeMapper(reflect.TypeFor[map[string]string](), text(func(text string, target reflect.Value) error {
			key, value, ok := strings.Cut(text, "=")
			if !ok || key == "" {
				return fmt.Errorf("expected KEY=VALUE but got %q", text)
			}
			if target.IsNil() {
				target.Set(reflect.MakeMap(target.Type()))
			}
			target.SetMapIndex(reflect.ValueOf(key), reflect.ValueOf(value))
			return nil
		})),
	}
}
