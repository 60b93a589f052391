"""Make a recipients file for trying things out: the same rows each time for the same count.

    python make_recipients.py --count 10000 recipients.csv

Of the rows two in a hundred are no good on purpose (broken addresses, a missing column, an open quote, an address
that stood before), so that the report of bad rows has something to tell. All domains are reserved for tests.
"""

import argparse
import csv
import random
from pathlib import Path

FIRST = [
    "Ada",
    "Björn",
    "Carla",
    "Deniz",
    "Elif",
    "François",
    "Grete",
    "Hans",
    "Ines",
    "José",
    "Kira",
    "Łukasz",
    "Mia",
    "Nils",
    "Oya",
    "Paul",
    "Rosa",
    "Søren",
    "Tom",
    "Zoë",
]
LAST = [
    "Adams",
    "Brown",
    "Çelik",
    "Dietrich",
    "Evans",
    "Fischer",
    "García",
    "Huber",
    "Ivanov",
    "Jensen",
    "Kowalski",
    "Lopez",
    "Müller",
    "Novak",
    "Olsen",
]
CITIES = ["Lisbon", "Berlin", "Zürich", "Oslo", "Kraków", "Ghent", "Lyon", "Porto", "Tallinn", "Graz"]
DOMAINS = ["gmail.test"] * 40 + ["outlook.test"] * 20 + ["yahoo.test"] * 15 + ["icloud.test"] * 10
DOMAINS += [f"mail{number}.example.net" for number in range(15)]
BAD_SHARE = 0.02


def plain(name: str) -> str:
    folded = name.lower().translate(str.maketrans("öçłüéíøëáó", "oclueioeao"))
    return "".join(character for character in folded if character.isascii() and character.isalpha())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="rows, the bad ones included")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(arguments.count)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("email", "name", "city", "code"))
        last = "ada.adams0@gmail.test"
        for number in range(arguments.count):
            first_name, last_name, city = rng.choice(FIRST), rng.choice(LAST), rng.choice(CITIES)
            code = f"{rng.randrange(16**8):08x}"
            address = f"{plain(first_name)}.{plain(last_name)}{number}@{rng.choice(DOMAINS)}"
            name = f"{first_name} {last_name}"
            if number and rng.random() < BAD_SHARE:
                kind = rng.randrange(5)
                if kind == 0:
                    writer.writerow((address.replace("@", " at "), name, city, code))
                elif kind == 1:
                    writer.writerow((address.replace(".", "..", 1), name, city, code))
                elif kind == 2:
                    writer.writerow((address, name, city))
                elif kind == 3:
                    file.write(f'{address},"{name},{city},{code}\n')
                else:
                    writer.writerow((last.upper(), name, city, code))
                continue
            writer.writerow((address, name, city, code))
            last = address


if __name__ == "__main__":
    main()
