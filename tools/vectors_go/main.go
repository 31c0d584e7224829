// Writes the vectors that rest on Go's own arithmetic and readers, which are what Flipt's v2 server runs on:
// literals.json, operators.json, bounds.json and percentages.json. From the project's root:
//
//	go run tools/vectors_go/main.go tests/vectors
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

type object = map[string]any

func main() {
	folder := os.Args[1]
	write(folder, "literals.json", literals())
	write(folder, "operators.json", operators())
	write(folder, "bounds.json", bounds())
	write(folder, "percentages.json", percentages())
}

// One row a line, so that a change of one row is one line of a diff.
func write(folder, name string, rows []object) {
	var out bytes.Buffer
	out.WriteString("[\n")
	for place, row := range rows {
		var line bytes.Buffer
		encoder := json.NewEncoder(&line)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(row); err != nil {
			panic(err)
		}
		out.Write(bytes.TrimRight(line.Bytes(), "\n"))
		if place < len(rows)-1 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
	}
	out.WriteString("]\n")
	if err := os.WriteFile(filepath.Join(folder, name), out.Bytes(), 0o644); err != nil {
		panic(err)
	}
	fmt.Println(name, len(rows))
}

var texts = []string{
	"", " ", "0", "-0", "1", "+1", "-1", "7", "42", "007", "1.5", "1.", ".5", ".", "1e3", "1E+3", "15e-1", "1e", "e1",
	"2147483648", "9007199254740993", "1e308", "1e309", "-1e309", "1e-400", "4.9e-324", "1.7976931348623159e308",
	"1_000", "1__0", "_1", "1_", "1_.5", "1e1_0", "0x1p4", "0x1P-2", "0x1.8p1", "0x.8p0", "0x1", "0x_1p4", "0x1_p4",
	"0x1p1024", "0x0p99999", "0b1", "0o7", "inf", "Inf", "+Infinity", "-inf", "infinit", "nan", "NaN", "+nan",
	" 1", "1 ", "1\n", "\u00a01", "\u0661", "\uff11", "1,5", "--1", "x", "abc",
	"t", "T", "TRUE", "true", "True", "tRUE", "f", "F", "FALSE", "false", "False", "yes", "no", "true ", " false",
	"\t\n\v\f\r", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2028", "\u202f", "\u205f", "\u3000",
	"\u001c", "\u001f", "\u200b", "\ufeff", "\u180e", " a b ", "\u001ca\u001f", "\u3000ab\u2003",
	"2024-03-01", "2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "0000-01-01", "9999-12-31", "2024-13-01",
	"2024-04-31", "2024-3-1", "2024-03-01T00:00:00Z", "2024-03-01T00:00:00.5Z", "2024-03-01T00:00:00,5Z",
	"2024-03-01T00:00:00.123456789Z", "2024-03-01T00:00:00.1234567899Z", "2024-03-01T01:00:00+01:00",
	"2024-02-29T18:30:00-05:30", "2024-03-01T0:00:00Z", "2024-03-01T24:00:00Z", "2024-03-01T00:60:00Z",
	"2016-12-31T23:59:60Z", "2024-03-01t00:00:00z", "2024-03-01 00:00:00Z", "2024-03-01T00:00:00",
	"2024-03-01T00:00Z", "2024-03-01T00:00:00+24:60", "2024-03-01T00:00:00+25:00", "2024-03-01T00:00:00.Z",
	"1969-12-31T23:59:59.75Z", " 2024-03-01", "2024-03-01 ",
	"a", "ab", "abc", "xab", "abx", "Ab", "größe", "日本", "🎈",
}

func number(text string) (float64, bool) {
	value, err := strconv.ParseFloat(text, 64)
	return value, err == nil
}

func instant(text string) (time.Time, bool) {
	if value, err := time.Parse(time.RFC3339, text); err == nil {
		return value, true
	}
	value, err := time.Parse(time.DateOnly, text)
	return value, err == nil
}

func literals() []object {
	rows := []object{}
	for _, text := range texts {
		row := object{"text": text, "trimmed": strings.TrimSpace(text), "number": nil, "boolean": nil, "instant": nil}
		if value, ok := number(text); ok {
			// The bits of the float64, because JSON has no infinities and no negative zero of its own.
			row["number"] = fmt.Sprintf("%016x", math.Float64bits(value))
			if math.IsNaN(value) {
				row["number"] = "nan"
			}
		}
		if value, err := strconv.ParseBool(text); err == nil {
			row["boolean"] = value
		}
		if value, ok := instant(text); ok {
			row["instant"] = []int64{value.Unix(), int64(value.Nanosecond())}
		}
		rows = append(rows, row)
	}
	return rows
}

func contains[T comparable](list []T, value T) bool {
	for _, item := range list {
		if item == value {
			return true
		}
	}
	return false
}

// What a value of the context makes of a constraint: the server's rules, told over Go's own readers.
func holds(kind, operator string, value any, seen string) bool {
	blank := strings.TrimSpace(seen) == ""
	switch operator {
	case "empty", "notpresent":
		return blank
	case "notempty", "present":
		return !blank
	}
	if seen == "" {
		return false
	}
	switch kind {
	case "string", "entity":
		switch operator {
		case "eq":
			return seen == value.(string)
		case "neq":
			return seen != value.(string)
		case "prefix":
			return strings.HasPrefix(strings.TrimSpace(seen), value.(string))
		case "suffix":
			return strings.HasSuffix(strings.TrimSpace(seen), value.(string))
		case "contains":
			return strings.Contains(seen, value.(string))
		case "notcontains":
			return !strings.Contains(seen, value.(string))
		case "isoneof":
			return contains(value.([]string), seen)
		case "isnotoneof":
			return !contains(value.([]string), seen)
		}
	case "number":
		had, ok := number(seen)
		if !ok {
			return false
		}
		if list, listed := value.([]string); listed {
			wanted := []float64{}
			for _, text := range list {
				item, _ := number(text)
				wanted = append(wanted, item)
			}
			return contains(wanted, had) == (operator == "isoneof")
		}
		wanted, _ := number(value.(string))
		return map[string]bool{
			"eq": had == wanted, "neq": had != wanted, "lt": had < wanted,
			"lte": had <= wanted, "gt": had > wanted, "gte": had >= wanted,
		}[operator]
	case "boolean":
		had, err := strconv.ParseBool(seen)
		return err == nil && had == (operator == "true")
	case "datetime":
		had, ok := instant(seen)
		if !ok {
			return false
		}
		pair := value.([]int64)
		order := had.Compare(time.Unix(pair[0], pair[1]))
		return map[string]bool{
			"eq": order == 0, "neq": order != 0, "lt": order < 0, "lte": order <= 0, "gt": order > 0, "gte": order >= 0,
		}[operator]
	}
	panic(kind + " " + operator)
}

func operators() []object {
	rows := []object{}
	add := func(kind, operator string, value any) {
		// Of all the texts of literals.json it holds for these and for no other.
		yes := []string{}
		for _, seen := range texts {
			if holds(kind, operator, value, seen) {
				yes = append(yes, seen)
			}
		}
		rows = append(rows, object{"type": kind, "operator": operator, "value": value, "holds_for": yes})
	}
	for _, kind := range []string{"string", "entity"} {
		for _, value := range []string{"ab", "a", "日本", "", " "} {
			for _, operator := range []string{"eq", "neq", "prefix", "suffix", "contains", "notcontains"} {
				add(kind, operator, value)
			}
		}
		for _, value := range [][]string{{}, {"a", "größe", "🎈"}, {"", "1"}} {
			add(kind, "isoneof", value)
			add(kind, "isnotoneof", value)
		}
		add(kind, "empty", nil)
		add(kind, "notempty", nil)
	}
	ordered := []string{"eq", "neq", "lt", "lte", "gt", "gte"}
	for _, operator := range ordered {
		for _, value := range []string{"1.0", "1.5", "0.0", "-inf", "inf", "nan", "1000.0", "2147483648.0"} {
			add("number", operator, value)
		}
		for _, value := range [][]int64{{1709251200, 0}, {1709251200, 500000000}, {-1, 750000000}} {
			add("datetime", operator, value)
		}
	}
	for _, value := range [][]string{{}, {"1.0", "1.5", "16.0"}, {"nan", "inf"}} {
		add("number", "isoneof", value)
		add("number", "isnotoneof", value)
	}
	add("boolean", "true", nil)
	add("boolean", "false", nil)
	for _, kind := range []string{"number", "boolean", "datetime"} {
		add(kind, "present", nil)
		add(kind, "notpresent", nil)
	}
	return rows
}

func bounds() []object {
	splits := [][]float64{
		{}, {100}, {0.001}, {50, 50}, {30, 70}, {0.1, 99.9}, {0.05, 99.95}, {16.67, 83.33}, {50, 20}, {1, 1, 1},
		{33.33, 33.33, 33.34}, {33.3, 33.3, 33.4}, {60, 60}, {10, 10, 10, 10, 10, 10, 10, 10, 10, 10},
		{14.3, 14.3, 14.3, 14.3, 14.3, 14.3, 14.2}, {0.1, 0.1, 0.1, 0.1, 99.6}, {99.999, 0.001}, {7, 11, 13, 17},
	}
	for tenth := 1; tenth < 1000; tenth += 7 {
		splits = append(splits, []float64{float64(tenth) / 10, float64(1000-tenth) / 10})
	}
	for _, tenth := range []int{149, 263, 265, 279, 295, 525, 623} {
		splits = append(splits, []float64{float64(tenth) / 10, float64(1000-tenth) / 10})
	}
	rows := []object{}
	for _, split := range splits {
		var total, cumulative float32
		for _, rollout := range split {
			total += float32(rollout)
		}
		result := []int{}
		for _, rollout := range split {
			share := float32(rollout) / total
			percent := share * 100
			cumulative += percent
			thousandths := cumulative * 10
			result = append(result, min(int(thousandths), 1000))
		}
		if len(result) > 0 {
			result[len(result)-1] = 1000
		}
		rows = append(rows, object{"rollouts": split, "bounds": result})
	}
	return rows
}

func percentages() []object {
	rows := []object{}
	values := []float64{0, 0.001, 0.5, 1, 33, 33.3, 33.0000001, 32.9999999, 33.00001, 50, 99, 99.5, 99.99999999, 100}
	for tenth := 3; tenth < 1000; tenth += 41 {
		values = append(values, float64(tenth)/10)
	}
	for _, value := range values {
		below := 0
		for bucket := 0; bucket < 100; bucket++ {
			if float32(bucket) < float32(value) {
				below++
			}
		}
		rows = append(rows, object{"percentage": value, "buckets": below})
	}
	return rows
}
