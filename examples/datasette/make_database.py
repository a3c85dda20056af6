"""Makes elements.db, the database that is shown, from elements.csv. Part of the build."""

import csv
import sqlite3

with open("elements.csv", newline="") as source:
    rows = list(csv.DictReader(source))

database = sqlite3.connect("elements.db")
database.execute("CREATE TABLE elements (number INTEGER PRIMARY KEY, symbol TEXT, name TEXT, period INTEGER)")
database.executemany("INSERT INTO elements VALUES (:number, :symbol, :name, :period)", rows)
database.commit()
database.close()
print(f"{len(rows)} elements")
